import BlockCore
import TestSupport
import Testing

@testable import QCOW2Engine

/// What whoever runs a disk hears of its failures, and what becomes of what was written before them.
@Suite struct ImageEventTests {
  private static let cluster = 4096
  private static let image = HostObject(.image, path: "/a.qcow2")

  /// Ten mapped clusters of 4 KiB, and a collector.
  private func bench(version: Int = 3) -> (Bench, ImageEvents) {
    var builder = ImageBuilder()
    builder.clusterBits = 12
    builder.version = version
    builder.size = 1 << 20
    for cluster in 0..<10 { builder.mappings[cluster] = .data }
    let bench = Bench(builder, schedule: nil, isImmediate: true)
    let events = ImageEvents()
    bench.options.reporter = EventReporter(events, Self.image)
    return (bench, events)
  }

  private func table(_ bench: Bench) -> Int {
    Int(bench.bytes.be64(Int(bench.bytes.be64(40))) & 0x00ff_ffff_ffff_fe00)
  }

  private func request(_ operation: BlockOperation, _ cluster: Int, _ data: IOBuffer)
    -> BlockRequest
  {
    BlockRequest(
      operation, offset: GuestOffset(UInt64(cluster * Self.cluster)), length: UInt64(Self.cluster),
      data: data.data)
  }

  /// Clusters of data for requests, which do not keep them alive: the suite does.
  private let written = Self.filled(0x77)
  private let read = Self.filled(0)

  private static func filled(_ byte: UInt8) -> IOBuffer {
    let buffer = IOBuffer(count: cluster)
    buffer.base.initializeMemory(as: UInt8.self, repeating: byte, count: buffer.count)
    return buffer
  }

  @Test(arguments: [2, 3]) func `a broken entry is named with its place`(version: Int) throws {
    let (bench, events) = bench(version: version)
    let entry = table(bench) + 5 * 8
    bench.bytes.put64(bench.bytes.be64(entry) | 0x200, entry)
    let value = bench.bytes.be64(entry)
    let data = read
    try bench.host.run {
      let image = try await bench.open()
      let driver = MiniWorker(target: image, file: bench.file, worker: 0)
      #expect(await driver.perform(self.request(.read, 5, data), slot: 0) == .io)
      #expect(await driver.perform(self.request(.read, 5, data), slot: 0) == .io)
      #expect(await driver.perform(self.request(.read, 4, data), slot: 0) == nil)
      #expect(await driver.perform(self.request(.write, 4, data), slot: 0) == .io)
      try await image.close()
    }
    let record = events.summary[.damaged]
    let first = try #require(record.first)
    #expect(record.count == 2)
    #expect(first.object == Self.image)
    #expect(first.offset == HostOffset(UInt64(entry)))
    #expect(first.guest == GuestOffset(5 * 4096))
    #expect(
      first.problem?.contains("L2 entry of guest cluster 5 is 0x\(String(value, radix: 16))")
        == true)
    #expect(first.consequence == (version == 3 ? .markedCorrupt : .writingStops))
    #expect(ImageEvent.Kind.allCases.allSatisfy { $0 == .damaged || events.summary[$0].count == 0 })
  }

  @Test func `a broken L1 entry is named with its place`() throws {
    let (bench, events) = bench()
    try bench.host.run {
      let image = try await bench.open()
      image.tables.l1.store(0x8000_0000_0004_2a00, at: 0)
      let data = self.read
      #expect(
        await image.serve(self.request(.read, 3, data), worker: 0, slot: 0) == .failed(.io))
    }
    let first = try #require(events.summary[.damaged].first)
    #expect(first.offset == HostOffset(bench.bytes.be64(40)))
    #expect(first.guest == GuestOffset(0))
  }

  @Test func `what was acknowledged before damage was found is kept`() throws {
    let (bench, _) = bench()
    let entry = table(bench) + 5 * 8
    bench.bytes.put64(bench.bytes.be64(entry) | 0x200, entry)
    try bench.host.run {
      let image = try await bench.open()
      let driver = MiniWorker(target: image, file: bench.file, worker: 0)
      // Into new clusters: the entries are in memory only.
      for cluster in 20..<24 {
        #expect(await driver.perform(self.request(.write, cluster, self.written), slot: 0) == nil)
      }
      #expect(await driver.perform(self.request(.read, 5, self.read), slot: 0) == .io)
      #expect(await driver.perform(self.request(.write, 24, self.written), slot: 0) == .io)
      // A flush promises what was written, and the image can be closed.
      #expect(await driver.perform(BlockRequest(.flush), slot: 0) == nil)
      try await image.close()
    }
    #expect(bench.bytes.be64(72) & 2 != 0, "not marked corrupt")
    let l2 = table(bench)
    for cluster in 20..<24 {
      let host = Int(bench.bytes.be64(l2 + cluster * 8) & 0x00ff_ffff_ffff_fe00)
      try #require(host != 0)
      #expect(bench.bytes.be64(host) == 0x7777_7777_7777_7777)
    }
  }

  @Test func `a failed barrier is told once, and close says what was lost`() throws {
    let (bench, events) = bench()
    try bench.host.run {
      let image = try await bench.open()
      let driver = MiniWorker(target: image, file: bench.file, worker: 0)
      #expect(await driver.perform(self.request(.write, 20, self.written), slot: 0) == nil)
      bench.faulty.fault = Fault(.sync, number: 1, errno: .io)
      #expect(await driver.perform(BlockRequest(.flush), slot: 0) == .io)
      #expect(await driver.perform(BlockRequest(.flush), slot: 0) == .io)
      #expect(await driver.perform(self.request(.write, 21, self.written), slot: 0) == .io)
      await #expect(throws: ImageError.self) { try await image.close() }
    }
    let record = events.summary[.syncFailed]
    #expect(record.count == 1)
    #expect(record.first?.errno == .io)
    #expect(record.first?.consequence == .writingStops)
  }

  @Test func `host errors have the file, the place and the errno`() throws {
    let (bench, events) = bench()
    try bench.host.run {
      let image = try await bench.open()
      let data = self.read
      // The slice, then the data.
      bench.faulty.fault = Fault(.read, number: 1, errno: .io)
      #expect(await image.serve(self.request(.read, 3, data), worker: 0, slot: 0) == .failed(.io))
      bench.faulty.fault = Fault(.read, number: 2, errno: .timedOut)
      #expect(
        await image.serve(self.request(.read, 3, data), worker: 0, slot: 0) == .failed(.timedOut))
      bench.faulty.fault = Fault(.write, number: 1, errno: .io)
      #expect(await image.serve(self.request(.write, 3, data), worker: 0, slot: 0) == .failed(.io))
      bench.faulty.fault = nil
      #expect(await image.serve(self.request(.write, 3, data), worker: 0, slot: 0) == .done)
      try await image.close()
    }
    let host = bench.bytes.be64(table(bench) + 3 * 8) & 0x00ff_ffff_ffff_fe00
    let reads = events.summary[.readFailed]
    #expect(reads.count == 2)
    #expect(reads.first?.offset == HostOffset(UInt64(table(bench))))
    #expect(reads.last?.offset == HostOffset(host))
    #expect(reads.last?.length == 4096)
    #expect(reads.last?.errno == .timedOut)
    #expect(events.summary[.writeFailed].first?.offset == HostOffset(host))
    #expect(events.summary[.damaged].count == 0)
  }

  @Test func `a backing file's errors are its own`() async throws {
    let bytes = ImageBytes(capacity: 1 << 20)
    bytes.setLength(8192)
    let file = FaultyFile(MemoryFile(bytes))
    let events = ImageEvents()
    let object = HostObject(.backingFile, path: "/base.raw")
    let layer = RawLayer(file, length: 8192, reporter: EventReporter(events, object))
    file.fault = Fault(.read, number: 1, errno: .io)
    let data = read
    await #expect(throws: ImageError.self) {
      try await layer.read(into: data.data, at: GuestOffset(4096), worker: 0)
    }
    let first = try #require(events.summary[.readFailed].first)
    #expect(first.object == object)
    #expect(first.offset == HostOffset(4096))
  }

  /// A block device with room for the L2 table and three clusters.
  private func smallBench() -> (Bench, ImageEvents) {
    var builder = ImageBuilder()
    builder.clusterBits = 12
    builder.size = 1 << 20
    let bench = Bench(
      builder, schedule: nil, traits: HostFileTraits(isBlockDevice: true), isImmediate: true)
    bench.bytes.setLength(bench.bytes.length + 4 * Self.cluster)
    let events = ImageEvents()
    bench.options.reporter = EventReporter(events, Self.image)
    return (bench, events)
  }

  @Test func `a lack of space has a beginning and an end`() throws {
    let (bench, events) = smallBench()
    try bench.host.run {
      let image = try await bench.open()
      let driver = MiniWorker(target: image, file: bench.file, worker: 0)
      let data = self.written
      for cluster in 0..<3 {
        #expect(await driver.perform(self.request(.write, cluster, data), slot: 0) == nil)
      }
      #expect(!events.summary.lacksSpace)
      for _ in 0..<5 {
        #expect(await driver.perform(self.request(.write, 3, data), slot: 0) == .noSpace)
        // A write in place needs no space, and shows none.
        #expect(await driver.perform(self.request(.write, 0, data), slot: 0) == nil)
        #expect(await driver.perform(BlockRequest(.flush), slot: 0) == nil)
      }
      #expect(events.summary.lacksSpace)
      #expect(events.summary.spaceEpisodes == 1)
      #expect(events.summary[.spaceLacking].count == 5)
      #expect(events.summary[.spaceLacking].first?.guest == GuestOffset(3 * 4096))
      #expect(events.summary[.writeFailed].count == 0)
      bench.bytes.setLength(bench.bytes.length + 2 * Self.cluster)
      #expect(await driver.perform(self.request(.write, 3, data), slot: 0) == nil)
      #expect(!events.summary.lacksSpace)
      #expect(events.summary[.spaceFound].count == 1)
      #expect(image.health.isGood, "writes are off the hit path")
      try await image.close()
    }
    #expect(ImageVerifier(bench.bytes).check().errors.isEmpty)
  }

  @Test func `a lack of space for a write in place ends with a write in place`() throws {
    let (bench, events) = bench()
    try bench.host.run {
      let image = try await bench.open()
      let driver = MiniWorker(target: image, file: bench.file, worker: 0)
      let data = self.written
      #expect(await driver.perform(self.request(.read, 3, data), slot: 0) == nil)
      bench.faulty.fault = Fault(.write, number: 1, errno: .noSpace, isPermanent: true)
      // As the data plane does: what fails for want of space on the hit path is served.
      #expect(
        await driver.perform(self.request(.write, 3, data), slot: 0, plans: false) == .noSpace)
      #expect(events.summary.lacksSpace)
      bench.faulty.fault = nil
      #expect(await driver.perform(self.request(.write, 3, data), slot: 0) == nil)
      #expect(!events.summary.lacksSpace)
      try await image.close()
    }
  }

  @Test func `a lack of space for new clusters keeps no write in place from the hit path`() throws {
    let (bench, events) = smallBench()
    try bench.host.run {
      let image = try await bench.open()
      let driver = MiniWorker(target: image, file: bench.file, worker: 0)
      let data = self.written
      for cluster in 0..<3 {
        #expect(await driver.perform(self.request(.write, cluster, data), slot: 0) == nil)
      }
      #expect(await driver.perform(self.request(.write, 3, data), slot: 0) == .noSpace)
      #expect(events.summary.lacksSpace && !image.health.isGood)
      let isPlanned = withUnsafeTemporaryAllocation(of: HostTransfer.self, capacity: 4) { plan in
        guard
          case .transfers(1) = image.plan(
            self.request(.write, 0, data), worker: 0, slot: 1, into: plan)
        else { return false }
        return image.finish(worker: 0, slot: 1, failed: true) == .done
      }
      #expect(isPlanned)
      try await image.close()
    }
  }

  @Test func `two lacks of space end one by one`() throws {
    let (bench, events) = smallBench()
    try bench.host.run {
      let image = try await bench.open()
      let driver = MiniWorker(target: image, file: bench.file, worker: 0)
      let data = self.written
      for cluster in 0..<3 {
        #expect(await driver.perform(self.request(.write, cluster, data), slot: 0) == nil)
      }
      bench.faulty.fault = Fault(.write, number: 1, errno: .noSpace, isPermanent: true)
      #expect(await driver.perform(self.request(.write, 0, data), slot: 0) == .noSpace)
      bench.faulty.fault = nil
      #expect(await driver.perform(self.request(.write, 3, data), slot: 0) == .noSpace)
      #expect(await driver.perform(self.request(.write, 0, data), slot: 0) == nil)
      #expect(events.summary.lacksSpace, "new clusters still cannot be had")
      bench.bytes.setLength(bench.bytes.length + 2 * Self.cluster)
      #expect(await driver.perform(self.request(.write, 3, data), slot: 0) == nil)
      #expect(!events.summary.lacksSpace && image.health.isGood)
      try await image.close()
    }
  }

  @Test func `events of many threads are all counted`() async {
    let events = ImageEvents()
    await withTaskGroup(of: Void.self) { group in
      for thread in 0..<8 {
        group.addTask {
          let reporter = EventReporter(events, HostObject(.image, path: "/\(thread)"))
          for offset in 0..<2000 {
            reporter.note(.read, at: HostOffset(UInt64(offset)), length: 512, .io)
            reporter.note(.write, at: HostOffset(0), length: 512, .noSpace)
            if offset % 100 == 0 { _ = events.summary }
          }
        }
      }
    }
    let summary = events.summary
    #expect(summary[.readFailed].count == 16000)
    #expect(summary[.readFailed].first?.offset == HostOffset(0))
    #expect(summary[.writeFailed].count == 0, "a lack of space is the request's to report")
  }
}
