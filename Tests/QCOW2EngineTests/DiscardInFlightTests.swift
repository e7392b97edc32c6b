import BlockCore
import QCOW2Format
import TestSupport
import Testing

@testable import QCOW2Engine

/// DISCARD and WRITE_ZEROES that meet a request in flight on the same cluster [DISC-11].
@Suite struct DiscardInFlightTests {
  /// How the request in flight changes its cluster.
  enum Kind: String, CaseIterable, Sendable {
    /// Copies a cluster that a snapshot shares.
    case copy
    /// Writes a subcluster that had no data into the cluster's own place.
    case fill
    /// Takes a compressed cluster apart.
    case inflate
    /// Copies from the backing file around the data.
    case overBacking
    /// Keeps what a read found in the backing file.
    case copyOnRead
    /// Goes into a new cluster on the hit path.
    case fresh
  }

  enum Change: String, CaseIterable, Sendable { case discard, zero, zeroInPlace }

  private static let clusterBits = 14
  private static let perCluster = 32
  /// The guest cluster that both requests are about, and the sector that is written.
  private static let cluster = 4
  private static let sector = 4 * 32 + 3

  private func bench(_ kind: Kind?) -> Bench {
    var builder = ImageBuilder()
    builder.clusterBits = Self.clusterBits
    builder.size = 4 << 20
    for cluster in 0..<8 where cluster != Self.cluster { builder.mappings[cluster] = .data }
    switch kind {
    case nil: builder.mappings[Self.cluster] = .data
    case .copy:
      builder.mappings[Self.cluster] = .data
      builder.hasSnapshot = true
    case .fill:
      builder.features.isExtended = true
      builder.mappings = [
        0: .data, Self.cluster: .subclusters(allocated: 1, zero: 0, hasHost: true),
      ]
    case .inflate: builder.mappings[Self.cluster] = .compressed
    case .overBacking, .copyOnRead: builder.features.backing = .equal
    case .fresh: break
    }
    let bench = Bench(builder, schedule: nil)
    bench.options.workers = 2
    bench.options.copyOnRead = kind == .copyOnRead
    bench.options.dirtyAgeMilliseconds = 1_000_000
    return bench
  }

  private func write(_ sector: Int, _ buffer: IOBuffer) -> BlockRequest {
    SectorPattern.fill(buffer.base, change: 77, sector: sector)
    return BlockRequest(
      .write, offset: GuestOffset(UInt64(sector * 512)), length: 512, data: buffer.data)
  }

  private func request(_ change: Change) -> BlockRequest {
    BlockRequest(
      change == .discard ? .discard : .writeZeroes,
      offset: GuestOffset(UInt64(Self.cluster) << UInt64(Self.clusterBits)),
      length: 1 << UInt64(Self.clusterBits), keepsAllocation: change == .zeroInPlace)
  }

  private func settle(_ bench: Bench) async {
    for _ in 0..<60 { await bench.host.complete("tick") }
  }

  /// The change that a sector of the image holds; nil for bytes that are no pattern.
  private func found(_ verifier: ImageVerifier, _ sector: Int) -> UInt32? {
    guard let bytes = verifier.sector(sector) else { return 0 }
    return SectorPattern.change(in: bytes, sector: sector)
  }

  private func expectSound(_ bench: Bench) {
    let verifier = bench.verifier()
    let report = verifier.check()
    #expect(report.errors.isEmpty && report.leaks == 0, "\(report)")
    #expect(bench.snapshotProblems(verifier).isEmpty)
    let first = Self.cluster * Self.perCluster
    for sector in first..<(first + Self.perCluster) {
      #expect(found(verifier, sector) == 0, "sector \(sector - first) of the cluster")
    }
  }

  @Test(
    "They wait for a write that changes the cluster's mapping, at each of its host writes",
    arguments: Kind.allCases, Change.allCases)
  func theyWaitForTheWrite(kind: Kind, change: Change) throws {
    for skipped in 0..<3 {
      let bench = bench(kind)
      let isHeld = Box(false)
      try bench.host.run {
        let gated = GatedFile(bench.files[0])
        let image = try await bench.open([gated] + bench.files[1...], options: bench.options)
        let files: [any HostFile] = [gated] + bench.files[1...]
        let writer = MiniWorker(target: image, files: files, worker: 0)
        let other = MiniWorker(target: image, files: files, worker: 1)
        let buffers = [IOBuffer(count: 512), IOBuffer(count: 512)]
        // The table is the image's own, and the arena is full.
        #expect(await writer.perform(self.write(0, buffers[0]), slot: 0) == nil)
        #expect(await writer.perform(self.write(8 * 32, buffers[0]), slot: 0) == nil)
        gated.operations = [.write]
        gated.skip = skipped
        gated.limit = 1
        gated.gate = 0..<(1 << 40)
        let isDone = Box(0)
        await withTaskGroup(of: Void.self) { group in
          group.addTask {
            var request = self.write(Self.sector, buffers[1])
            if kind == .copyOnRead { request.operation = .read }
            #expect(await writer.perform(request, slot: 1) == nil)
            isDone.value += 1
          }
          await self.settle(bench)
          isHeld.value = !gated.held.isEmpty
          group.addTask {
            #expect(await other.perform(self.request(change), slot: 1) == nil)
            isDone.value += 1
          }
          await self.settle(bench)
          if isHeld.value { #expect(isDone.value == 0, "it did not wait") }
          gated.gate = nil
        }
        #expect(isDone.value == 2)
        withExtendedLifetime(buffers) {}
        try await image.close()
      }
      expectSound(bench)
      // Fewer host writes than that: all have been tried.
      if !isHeld.value {
        #expect(skipped > 0)
        break
      }
    }
  }

  @Test(
    "Under a write in place the cluster is neither freed nor used anew, whether they wait or not",
    arguments: Change.allCases, [false, true])
  func aWriteInPlaceKeepsItsCluster(change: Change, plans: Bool) throws {
    let bench = bench(nil)
    try bench.host.run {
      let gated = GatedFile(bench.files[0])
      let image = try await bench.open([gated] + bench.files[1...], options: bench.options)
      let files: [any HostFile] = [gated] + bench.files[1...]
      let writer = MiniWorker(target: image, files: files, worker: 0)
      let other = MiniWorker(target: image, files: files, worker: 1)
      let buffers = [IOBuffer(count: 512), IOBuffer(count: 512)]
      #expect(await writer.perform(self.write(8 * 32, buffers[0]), slot: 0) == nil)
      let read = BlockRequest(
        .read, offset: GuestOffset(UInt64(Self.sector * 512)), length: 512, data: buffers[0].data)
      #expect(await writer.perform(read, slot: 0) == nil)
      guard
        case .data(let host, _) = try await image.mapping.extent(at: read.offset, length: 512)
      else { throw Mismatch() }
      let place = host.bytes & ~((1 << UInt64(Self.clusterBits)) - 1)
      gated.operations = [.write]
      gated.limit = 1
      gated.gate = place..<(place + 1 << UInt64(Self.clusterBits))
      let isDone = Box(0)
      await withTaskGroup(of: Void.self) { group in
        group.addTask {
          let request = self.write(Self.sector, buffers[1])
          #expect(await writer.perform(request, slot: 1, plans: plans) == nil)
          isDone.value += 1
        }
        await self.settle(bench)
        #expect(gated.held.count == 1)
        group.addTask {
          #expect(await other.perform(self.request(change), slot: 1) == nil)
          isDone.value += 1
        }
        await self.settle(bench)
        // On the slow path the write holds its range, and they wait; on the hit path they are done.
        #expect(isDone.value == (plans ? 1 : 0))
        await self.useClusters(image, other, from: 16, count: 100)
        #expect(gated.counts[.punch] == nil && gated.counts[.write] == 1, "\(gated.counts)")
        gated.gate = nil
      }
      #expect(isDone.value == 2)
      await self.useClusters(image, other, from: 120, count: 100)
      withExtendedLifetime(buffers) {}
      try await image.close()
    }
    expectSound(bench)
    let verifier = bench.verifier()
    for cluster in Array(16..<116) + Array(120..<220) {
      #expect(found(verifier, cluster * Self.perCluster) == 77, "cluster \(cluster)")
    }
  }

  private struct Mismatch: Error {}

  /// Lets go of what may be let go of, and writes new clusters.
  private func useClusters(
    _ image: Image, _ worker: MiniWorker, from first: Int, count: Int
  ) async {
    for _ in 0..<3 {
      try? await image.flush()
      await image.maintain()
    }
    try? await image.arenas.returnAll()
    for cluster in first..<(first + count) {
      let buffer = IOBuffer(count: 512)
      let request = write(cluster * Self.perCluster, buffer)
      #expect(await worker.perform(request, slot: 0) == nil)
      withExtendedLifetime(buffer) {}
    }
  }
}
