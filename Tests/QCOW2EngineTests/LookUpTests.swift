import BlockCore
import QCOW2Format
import TestSupport
import Testing

@testable import QCOW2Engine

/// Look-ups that change nothing, when nothing can be written back and when an entry is damaged.
@Suite struct LookUpTests {
  /// What keeps rounds from writing back.
  enum Obstacle: String, CaseIterable, Sendable { case syncFailed, corruption, noRoom }

  private static let cluster = 4096
  /// Guest clusters of one L2 table, which is one slice.
  private static let perTable = 512

  private func bench(_ change: (inout ImageBuilder) -> Void = { _ in }) -> Bench {
    var builder = ImageBuilder()
    builder.clusterBits = 12
    builder.size = 16 << 20
    for table in 0..<8 {
      for cluster in 0..<4 { builder.mappings[table * Self.perTable + cluster] = .data }
    }
    change(&builder)
    let bench = Bench(builder, schedule: nil, isImmediate: true)
    bench.options.cacheBytes = 4096
    bench.options.dirtyAgeMilliseconds = 1_000_000
    return bench
  }

  private func request(
    _ operation: BlockOperation, _ cluster: Int, _ buffer: IOBuffer
  ) -> BlockRequest {
    BlockRequest(
      operation, offset: GuestOffset(UInt64(cluster * Self.cluster)), length: 512,
      data: buffer.data)
  }

  private func errno(_ image: Image, _ request: BlockRequest) async -> Errno? {
    await image.serve(request, worker: 0, slot: 0).errno
  }

  /// Expects a READ of the first sector of a mapped cluster to return what the image has had there.
  private func expectOriginal(_ bench: Bench, _ image: Image, _ cluster: Int) async {
    let buffer = IOBuffer(count: 512)
    let driver = MiniWorker(target: image, file: bench.file, worker: 0)
    #expect(await driver.perform(request(.read, cluster, buffer), slot: 0) == nil)
    let now = bench.clock.tick()
    let problem = bench.model.checkRead(
      UnsafeRawPointer(buffer.base), sector: cluster * 8, started: now, ended: now)
    #expect(problem == nil, "cluster \(cluster): \(problem ?? "")")
    withExtendedLifetime(buffer) {}
  }

  @Test(
    "When nothing can be written back, reads and map queries of tables that are not cached go on",
    arguments: Obstacle.allCases)
  func readsGoOn(obstacle: Obstacle) throws {
    let bench = bench()
    try bench.host.run {
      let image = try await bench.open()
      let buffer = IOBuffer(count: 512)
      // The only slot of the cache is dirty now.
      #expect(await self.errno(image, self.request(.write, 100, buffer)) == nil)
      #expect(image.l2.slotCount == 1 && image.l2.dirtyCount == 1)
      switch obstacle {
      case .syncFailed:
        bench.faulty.fault = Fault(.sync, number: 1, errno: .io, isPermanent: true)
        #expect(await self.errno(image, BlockRequest(.flush)) == .io)
      case .corruption: await image.faults.report(.overlapsMetadata(cluster: 1))
      case .noRoom:
        bench.faulty.fault = Fault(.write, number: 1, errno: .noSpace, isPermanent: true)
        #expect(await self.errno(image, BlockRequest(.flush)) == .noSpace)
      }
      let failures = bench.faulty.failures.count
      for table in 1..<8 {
        await self.expectOriginal(bench, image, table * Self.perTable + 2)
        let found = try await image.allocation(
          at: GuestOffset(UInt64((table * Self.perTable + 2) * Self.cluster)), length: 1 << 20)
        #expect(found.isAllocated && found.length == 2 * UInt64(Self.cluster))
      }
      #expect(bench.faulty.failures.count == failures, "a look-up has written something")
      // What is dirty reads as it was written.
      #expect(await self.errno(image, self.request(.read, 100, buffer)) == nil)
      bench.faulty.fault = nil
      withExtendedLifetime(buffer) {}
      _ = try? await image.close()
    }
  }

  @Test("A slice that is changed while it is read past the cache is looked at anew")
  func aChangeMeanwhileIsSeen() throws {
    let bytes = ImageBytes(capacity: 1 << 20)
    for slice in 0..<8 { bytes.put64(UInt64(slice), slice * 512) }
    let host = SimulatedHost(seed: nil)
    let late = LateFile(MemoryFile(bytes))
    let storage = ImageStorage(file: late, health: ImageHealth())
    let cache = try SliceCache(sliceSize: 512, slots: 1)
    @Sendable func change(_ slice: Int) async throws {
      try await cache.withSlice(
        HostOffset(UInt64(slice * 512)), storage: storage, makeRoom: {}
      ) { slice in
        slice.storeBE64(slice.bytes.be64(0) + 1000, 0)
      }
    }
    @Sendable func writeBack() async throws {
      let batch = WriteBackBatch(cache: cache)
      var dirty = cache.dirtyKeys()[...]
      batch.take(from: &dirty)
      try await batch.write(to: storage)
    }
    try host.run {
      try await change(1)
      late.holds = true
      let found = Box<UInt64?>(nil)
      await withTaskGroup(of: Void.self) { group in
        group.addTask {
          found.value = try? await cache.lookAt(HostOffset(1024), storage: storage) { $0.be64(0) }
        }
        while late.held == nil { await host.complete("tick") }
        late.holds = false
        // The look-up has the old bytes. Now the slice comes in, changes, and goes out again.
        try? await writeBack()
        try? await change(2)
        try? await writeBack()
        try? await change(3)
        late.held?.resume()
      }
      #expect(found.value == 1002)
    }
  }

  @Test("One bad entry of a read-only image fails the requests that touch it, and no other")
  func oneBadEntryFailsItsOwnRequests() throws {
    let bench = bench()
    bench.options.readOnly = true
    let table = Int(bench.bytes.be64(Int(bench.bytes.be64(40))) & 0x00ff_ffff_ffff_fe00)
    // An L2 entry whose offset is no cluster's.
    bench.bytes.put64(bench.bytes.be64(table + 8) | 0x200, table + 8)
    try bench.host.run {
      let image = try await bench.open()
      // L1 entries: one with reserved bits, one that is not aligned.
      image.tables.l1.store(image.tables.l1.load(2) | 1, at: 2)
      image.tables.l1.store(image.tables.l1.load(3) | 0x200, at: 3)
      let buffer = IOBuffer(count: 512)
      for plans in [false, true] {
        let driver = MiniWorker(target: image, file: bench.file, worker: 0)
        for cluster in [1, 2 * Self.perTable, 3 * Self.perTable + 3, 3 * Self.perTable + 400] {
          let read = self.request(.read, cluster, buffer)
          #expect(await driver.perform(read, slot: 0, plans: plans) == .io, "\(cluster)")
        }
        for cluster in [0, 2, Self.perTable + 3, 4 * Self.perTable, 7 * Self.perTable + 1] {
          await self.expectOriginal(bench, image, cluster)
        }
      }
      #expect(!image.health.isCorrupt)
      withExtendedLifetime(buffer) {}
      try await image.close()
    }
    #expect(bench.bytes.be64(72) & 2 == 0)
  }
}

/// A file that reads at once, and holds one read back before it returns.
private final class LateFile: ForwardingFile, @unchecked Sendable {  // why: one thread
  let file: any HostFile
  var holds = false
  var held: UnsafeContinuation<Void, Never>?

  init(_ file: any HostFile) { self.file = file }

  func read(into buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    try await file.read(into: buffer, at: offset)
    if holds { await withUnsafeContinuation { held = $0 } }
  }
}
