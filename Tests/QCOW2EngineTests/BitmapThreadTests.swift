import BlockCore
import QCOW2Engine
import TestSupport
import TestTools
import Testing

/// Real threads on an image with bitmaps whose bits are cleared all the time.
///
/// Also for the thread sanitizer: `swift test --sanitize=thread --filter BitmapThread`.
@Suite(.serialized) struct BitmapThreadTests {
  @Test(
    "No data write starts before its bits are on the host file, whatever is cleared meanwhile",
    arguments: [9, 12])
  func bitsAreThereBeforeTheData(clusterBits: Int) async throws {
    let seed = testSeed("bitmap threads")
    var builder = ThreadRun.builder(clusterBits: clusterBits)
    builder.bitmaps = [
      BitmapSpec("sectors", granularityBits: 9), BitmapSpec("pages", granularityBits: 12),
    ]
    let memory = MemoryFile(builder.build(capacity: 1 << 26))
    memory.yields = true
    let file = WatchedFile(memory)
    var options = ThreadRun.options()
    options.bitmapIntentBytes = 8192
    options.bitmapQuietMilliseconds = 0
    let image = try await Image.open(file, options: options)
    let clients = (0..<16).map { number in
      ThreadClient(image: image, file: file, number: number, seed: seed)
    }
    await ThreadRun.run(clients, on: image)
    #expect(file.missing.withLock { $0 } == [])
    #expect(file.checked.withLock { $0 } > 100)
    ThreadRun.expectSound(ImageVerifier(memory.bytes))
  }
}

extension BitmapThreadTests {
  @Test("Bitmaps come and go beside threads that write, and miss nothing", arguments: [9, 12])
  func bitmapsComeAndGo(clusterBits: Int) async throws {
    let seed = testSeed("bitmap threads")
    var builder = ThreadRun.builder(clusterBits: clusterBits)
    builder.bitmaps = [BitmapSpec("sectors", granularityBits: 9)]
    let memory = MemoryFile(builder.build(capacity: 1 << 26))
    memory.yields = true
    let file = WatchedFile(memory)
    var options = ThreadRun.options()
    options.bitmapIntentBytes = 8192
    options.bitmapQuietMilliseconds = 0
    let image = try await Image.open(file, options: options)
    let clients = (0..<16).map { number in
      ThreadClient(image: image, file: file, number: number, seed: seed)
    }
    // So many that the image, which grows by each, stays inside the memory that it has here.
    let most = 2000
    let changes = Guarded(0)
    await ThreadRun.run(clients, on: image, times: 2) { isOver in
      do {
        try await image.changeBitmaps(.add("kept", granularity: 512))
        try await image.quiesce()
        file.counts.withLock { $0 = true }
        repeat {
          for change in [
            BitmapChange.add("x", granularity: 4096), .merge(into: "x", from: .own("sectors")),
            .merge(into: "kept", from: .own("x")), .clear("x"), .disable("x"), .enable("x"),
            .remove("x"),
          ] { try await image.changeBitmaps(change) }
          changes.withLock { $0 += 7 }
        } while !isOver.withLock { $0 } && changes.withLock { $0 } < most
      } catch { Issue.record("\(error)") }
    }
    #expect(file.missing.withLock { $0 } == [])
    let verifier = ImageVerifier(memory.bytes)
    ThreadRun.expectSound(verifier)
    let bitmap = try #require(verifier.bitmaps?.first { $0.name == "kept" })
    let written = file.counted.withLock { $0 }
    #expect(written.allSatisfy { verifier.isSet(bitmap, sector: Int($0)) })
    print("bitmap threads: \(changes.withLock { $0 }) changes, \(written.count) sectors")
    #expect(written.count > 20)
  }
}

/// A value behind a lock.
final class Guarded<Value: Sendable>: @unchecked Sendable {  // why: `lock` guards `value`
  private let lock = FutexLock(.leaf)
  private var value: Value

  init(_ value: Value) { self.value = value }

  func withLock<R>(_ body: (inout Value) -> R) -> R { lock.withLock { body(&value) } }
}

/// Looks, when a data write starts and when it ends, whether the bits of its sectors are set.
final class WatchedFile: ForwardingFile {
  let file: any HostFile
  /// Table offset and log2 of the granularity of each bitmap.
  private let bitmaps: [(table: UInt64, bits: Int)]
  private let clusterSize: UInt64
  let missing = Guarded<[String]>([])
  let checked = Guarded(0)
  /// Whether sectors that are written from now on are kept in ``counted``.
  let counts = Guarded(false)
  let counted = Guarded(Set<UInt64>())

  init(_ file: MemoryFile) {
    self.file = file
    let bytes = file.bytes
    clusterSize = 1 << UInt64(bytes.be32(20))
    bitmaps = (ImageVerifier(bytes).bitmaps ?? []).map { ($0.tableOffset, $0.granularityBits) }
  }

  private func byte(_ offset: UInt64, count: Int) async throws(Errno) -> UInt64 {
    let buffer = IOBuffer(count: 8)
    try await file.read(into: buffer.data.slice(0, count), at: HostOffset(offset))
    defer { withExtendedLifetime(buffer) {} }
    let value = UInt64(bigEndian: buffer.base.load(as: UInt64.self))
    return count == 8 ? value : value >> 56
  }

  private func check(_ sector: UInt64, _ when: String) async throws(Errno) {
    for bitmap in bitmaps {
      let bit = (sector * 512) >> UInt64(bitmap.bits)
      let entry = try await byte(bitmap.table + bit / (clusterSize * 8) * 8, count: 8)
      var isSet = entry == 1
      if entry > 1 {
        let value = try await byte(entry + bit / 8 % clusterSize, count: 1)
        isSet = value >> (bit % 8) & 1 == 1
      }
      if !isSet {
        missing.withLock { $0.append("sector \(sector), \(1 << bitmap.bits): not set \(when)") }
      }
    }
    checked.withLock { $0 += 1 }
  }

  /// The sectors that a data write says it is for.
  private func sectors(_ buffer: DataBuffer) -> [UInt64] {
    guard let memory = buffer.memory else { return [] }
    return stride(from: 0, to: buffer.count - 15, by: 512).compactMap { at in
      memory.loadUnaligned(fromByteOffset: at, as: UInt64.self) >> 48 == 0x5a5a
        ? memory.loadUnaligned(fromByteOffset: at + 8, as: UInt64.self) : nil
    }
  }

  func write(from buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    let sectors = sectors(buffer)
    if counts.withLock({ $0 }) { counted.withLock { $0.formUnion(sectors) } }
    for sector in sectors { try await check(sector, "before") }
    try await file.write(from: buffer, at: offset)
    for sector in sectors { try await check(sector, "after") }
  }
}
