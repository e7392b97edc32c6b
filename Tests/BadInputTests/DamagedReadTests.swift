import BlockCore
import QCOW2Engine
import QCOW2Format
import QCOW2Tools
import Testing
import Uring

extension BadInputTests {
  /// Damage that concerns a part of the disk: the rest is read, and nothing is written.
  struct DamagedReadTests {
    /// One kind of damage.
    struct Damage: Sendable, CustomStringConvertible {
      let description: String
      /// What the refusal for writing names: the entry or field and its value.
      let named: String
      /// Which of the two L2 tables can still be reached.
      let readable: [Bool]
      let edit: @Sendable (inout HandmadeImage) -> Void
    }

    private static func l1(_ value: UInt64, _ problem: String) -> Damage {
      Damage(
        description: "L1 entry \(problem)", named: "L1 entry 1 is \(hex(value)): \(problem)",
        readable: [true, false]
      ) { $0.put64(value, at: $0.start(HandmadeImage.l1Table) + 8) }
    }

    static let damages = [
      l1(1 << 63 | 5 << 9 | 1 << 57, "reserved bits are set"),
      l1(1 << 63 | 5 << 9 | 4, "reserved bits are set"),
      l1(1 << 63 | 1 << 40, "beyond the end of the file"),
      l1(1 << 63 | 15 << 9, "beyond the end of the file"),
      Damage(
        description: "refcount table longer than the file",
        named: "refcount_table_offset is truncated", readable: [true, true]
      ) { $0.put32(100, at: 56) },
      Damage(
        description: "refcount table behind the file",
        named: "refcount_table_offset is truncated", readable: [true, true]
      ) { $0.put64(1 << 40, at: 48) },
      Damage(
        description: "refcount block beyond the end of the file",
        named: "refcount table entry 1 is 0x2000: beyond the end of the file",
        readable: [true, true]
      ) { $0.put64(16 << 9, at: $0.start(HandmadeImage.refcountTable) + 8) },
      Damage(
        description: "no refcount table", named: "refcount_table_clusters is 0",
        readable: [true, true]
      ) { $0.put32(0, at: 56) },
      Damage(
        description: "L1 table that ends behind the file", named: "l1_table_offset is truncated",
        readable: [true, false]
      ) { image in
        let l1 = image.start(HandmadeImage.l1Table)
        image.put64(image.get64(l1), at: image.start(14))
        image.put64(image.offset(14), at: 40)
        image.bytes.removeLast(image.bytes.count - image.start(14) - 8)
      },
    ]

    @Test(arguments: damages) func onlyRequestsThatMeetTheDamageFail(_ damage: Damage) throws {
      var image = HandmadeImage()
      damage.edit(&image)
      let verdicts = Trial("\(damage)", image.bytes).run()
      guard case .served = verdicts.reader else {
        Issue.record("not read: \(verdicts.reader)")
        return
      }
      for table in 0..<2 {
        let offset = image.bytesPerTable * UInt64(table)
        let byte = read(image.bytes, at: offset)
        #expect(byte == (damage.readable[table] ? UInt8(table * 4 + 1) : nil), "table \(table)")
      }
      guard case .refused(let error) = verdicts.writer else {
        Issue.record("opened for writing")
        return
      }
      #expect(error.message.contains(damage.named), "\(error.message)")
      #expect(error.message.contains("qublk check -r all"))
      #expect(!error.isCorruption)
      // The check says the same, and info shows what can be read.
      let result = try ImageCheck.run(MemoryBytes(image.bytes))
      #expect(result.exitCode == 2)
      _ = try ImageInfo(reading: MemoryBytes(image.bytes), path: "x", allocatedBytes: 0)
    }

    @Test(arguments: damages) func whatARepairCanMendIsWritableAfterwards(_ damage: Damage) throws {
      var image = HandmadeImage()
      damage.edit(&image)
      let bytes = MemoryBytes(image.bytes)
      _ = try RefcountRebuild.repair(bytes, .all)
      var left: [CheckFinding] = []
      let result = try ImageCheck.run(bytes) { left.append($0) }
      let verdicts = Trial("\(damage), repaired", bytes.bytes).run()
      // Nothing tells where an L2 table is; refcounts can be counted anew.
      let isMended = !damage.description.hasPrefix("L1 entry beyond")
      #expect((result.corruptions == 0) == isMended, "\(left.map(\.message))")
      switch verdicts.writer {
      case .served: #expect(isMended)
      case .refused(let error): #expect(!isMended, "\(error.message)")
      }
      #expect(read(bytes.bytes, at: 0) == 1)
    }

    /// The first byte of a sector; nil if it cannot be read.
    private func read(_ bytes: [UInt8], at offset: UInt64) -> UInt8? {
      runBlocking { () async -> UInt8? in
        var options = ImageOptions()
        options.readOnly = true
        let file = SparseFile(bytes, isReadOnly: true)
        guard let image = try? await Image.open(file, options: options) else { return nil }
        let buffer = IOBuffer(count: 512)
        let request = BlockRequest(
          .read, offset: GuestOffset(offset), length: 512, data: buffer.data)
        let errno = await image.serve(request, at: RequestSlot(worker: 0, number: 0)).errno
        #expect(errno == nil || errno == .io)
        return errno == nil ? buffer.base.load(as: UInt8.self) : nil
      }
    }
  }
}
