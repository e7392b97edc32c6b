import BlockCore
import QCOW2Format
import TestSupport
import Testing

@testable import QCOW2Engine

/// A slice whose place on the host cannot be written: what is lost is that slice, and nothing else.
@Suite struct BadPlaceTests {
  /// A file of which one range cannot be written.
  private final class BadPlaceFile: ForwardingFile, @unchecked Sendable {  // why: one thread
    let file: any HostFile
    var bad: Range<UInt64>?
    private(set) var failures = 0

    init(_ file: any HostFile) { self.file = file }

    func write(from buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
      if let bad, bad.overlaps(offset.bytes..<(offset.bytes + UInt64(buffer.count))) {
        failures += 1
        throw .io
      }
      try await file.write(from: buffer, at: offset)
    }
  }

  /// Eight tables of one slice each, of which the one with the number `bad` cannot be written.
  private func run(
    bad: Int,
    _ body: @escaping @Sendable (Bench, Image, BadPlaceFile, MiniWorker) async throws -> Void
  ) throws -> Bench {
    var builder = ImageBuilder()
    builder.clusterBits = 12
    builder.size = 16 << 20
    for table in 0..<8 { builder.mappings[table * 512] = .data }
    let bench = Bench(builder, schedule: nil)
    bench.options.dirtyAgeMilliseconds = 1_000_000
    let place = bench.bytes.be64(Int(bench.bytes.be64(40)) + bad * 8) & 0x00ff_ffff_ffff_fe00
    try bench.host.run {
      let file = BadPlaceFile(bench.files[0])
      let image = try await bench.open([file] + bench.files[1...], options: bench.options)
      file.bad = place..<(place + 4096)
      let worker = MiniWorker(target: image, files: [file], worker: 0)
      for table in 0..<8 {
        // A new cluster in each table, and one that goes.
        #expect(await bench.write((table * 4096 + 80)..<(table * 4096 + 88), by: worker) == nil)
        let discard = BlockRequest(
          .discard, offset: GuestOffset(UInt64(table) << 21), length: 4096,
          data: IOBuffer(count: 512).data)
        #expect(await worker.perform(discard, slot: 0) == nil)
      }
      try await body(bench, image, file, worker)
    }
    return bench
  }

  /// Which of the eight new clusters the host file has.
  private static func kept(_ bench: Bench) -> [Int] {
    let verifier = bench.verifier()
    return (0..<8).filter { verifier.sector($0 * 4096 + 80) != nil }
  }

  @Test("Every other slice is durable when the flush has failed", arguments: [0, 3, 7])
  func theRestIsWritten(bad: Int) throws {
    let bench = try run(bad: bad) { bench, image, file, worker in
      for _ in 0..<2 {
        #expect(await worker.perform(BlockRequest(.flush), slot: 0) == .io)
        #expect(file.failures > 0 && image.health.allowsWrites)
        #expect(Self.kept(bench) == (0..<8).filter { $0 != bad })
        // What the old entries on the host file lead to is still there.
        let report = bench.verifier().check()
        #expect(report.errors.isEmpty, "\(report.errors)")
        await image.maintain()
        #expect(!image.frees.isEmpty && !image.frees.hasDurable)
      }
      #expect(bench.recording.events.last { $0.kind != .write }?.kind == .sync)
      file.bad = nil
      #expect(await worker.perform(BlockRequest(.flush), slot: 0) == nil)
      #expect(Self.kept(bench) == Array(0..<8))
      try await image.close()
    }
    let report = bench.verifier().check()
    #expect(report.errors.isEmpty && report.leaks == 0, "\(report)")
  }

  @Test(
    "Reads go on after that, after a lost sync and after damage",
    arguments: ["place", "sync", "damage"])
  func readsGoOn(failure: String) throws {
    _ = try run(bad: 2) { bench, image, file, worker in
      switch failure {
      case "sync":
        image.health.noteSyncFailure()
        #expect(await worker.perform(BlockRequest(.flush), slot: 0) != nil)
      case "damage":
        await image.faults.report(.overlapsMetadata(cluster: 0))
        #expect(image.health.isCorrupt)
        // What was changed before is written, but for the bad place.
        #expect(await worker.perform(BlockRequest(.flush), slot: 0) == .io)
        #expect(Self.kept(bench) == (0..<8).filter { $0 != 2 })
      default: #expect(await worker.perform(BlockRequest(.flush), slot: 0) == .io)
      }
      let buffer = IOBuffer(count: 512)
      for table in 0..<8 {
        for plans in [true, false] {
          let read = BlockRequest(
            .read, offset: GuestOffset(UInt64(table * 4096 + 80) * 512), length: 512,
            data: buffer.data)
          #expect(await worker.perform(read, slot: 0, plans: plans) == nil)
          #expect((SectorPattern.change(in: buffer.base, sector: table * 4096 + 80) ?? 0) > 0)
        }
      }
      withExtendedLifetime(buffer) {}
    }
  }
}
