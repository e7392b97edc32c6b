import BlockCore
import TestSupport
import TestTools
import Testing

@testable import QCOW2Engine

/// Cold sequential reads, and misses on many slices at once.
@Suite struct ReadaheadTests {
  private struct Stream: Sendable, CustomTestStringConvertible {
    var clusterBits: Int
    var size: UInt64
    var step: UInt64
    var depth: Int
    var operation = BlockOperation.read
    var testDescription: String {
      "\(operation)s, clusters 2^\(clusterBits), \(step) bytes, depth \(depth)"
    }
  }

  private static let streams = [
    Stream(clusterBits: 16, size: 8 << 30, step: 1 << 20, depth: 1),
    Stream(clusterBits: 16, size: 8 << 30, step: 1 << 20, depth: 8),
    Stream(clusterBits: 16, size: 8 << 30, step: 256 << 10, depth: 1),
    Stream(clusterBits: 12, size: 128 << 20, step: 4096, depth: 1),
    Stream(clusterBits: 12, size: 128 << 20, step: 4096, depth: 32),
    Stream(clusterBits: 9, size: 8 << 20, step: 4096, depth: 1),
    Stream(clusterBits: 16, size: 8 << 30, step: 1 << 20, depth: 1, operation: .write),
    Stream(clusterBits: 12, size: 128 << 20, step: 4096, depth: 32, operation: .write),
  ]

  private func open(_ file: SyntheticImage, readOnly: Bool = true) async throws -> Image {
    file.fillsData = false
    var options = ImageOptions()
    options.readOnly = readOnly
    return try await Image.open(file, options: options)
  }

  @Test("A cold sequential stream misses two slices and loads none twice", arguments: streams)
  private func aStreamMissesTwoSlices(stream: Stream) throws {
    let host = SimulatedHost(seed: nil)
    let file = SyntheticImage(size: stream.size, clusterBits: stream.clusterBits, host: host)
    let served = Box(0)
    try host.run {
      let image = try await self.open(file, readOnly: stream.operation == .read)
      let buffer = IOBuffer(count: Int(stream.step))
      let next = Box(UInt64(0))
      await withTaskGroup(of: Void.self) { group in
        for slot in 0..<stream.depth {
          group.addTask {
            await self.run(stream, image, file, buffer, slot, next, served)
          }
        }
      }
      withExtendedLifetime(buffer) {}
      let counts = image.l2.counts
      let slices = stream.size / image.slices.bytesPerSlice
      #expect(counts.loads <= 2, "\(counts)")
      #expect(UInt64(file.reads(.l2)) == slices, "\(file.reads(.l2)) reads for \(slices) slices")
      // At depth 1 a request meets the slow path once for each slice, and waits for none.
      if stream.depth == 1 {
        #expect(UInt64(served.value) <= slices + 2)
        #expect(counts.waits == 0, "\(counts)")
      }
    }
  }

  private func run(
    _ stream: Stream, _ image: Image, _ file: SyntheticImage, _ buffer: IOBuffer, _ slot: Int,
    _ next: Box<UInt64>, _ served: Box<Int>
  ) async {
    let plan = UnsafeMutableBufferPointer<HostTransfer>.allocate(capacity: 64)
    defer { plan.deallocate() }
    while next.value < stream.size {
      let request = BlockRequest(
        stream.operation, offset: GuestOffset(next.value), length: stream.step, data: buffer.data)
      next.value += stream.step
      if case .transfers(let count) = image.plan(request, worker: 0, slot: slot, into: plan) {
        #expect(count == 1, "contiguous clusters are one transfer")
        if stream.operation == .read {
          try? await file.read(into: buffer.data, at: plan[0].hostOffset)
        } else {
          try? await file.write(from: buffer.data, at: plan[0].hostOffset)
        }
        _ = image.finish(worker: 0, slot: slot, failed: false)
      } else {
        served.value += 1
        #expect(await image.serve(request, worker: 0, slot: slot) == .done)
      }
    }
  }

  @Test("Random misses load nothing ahead")
  func randomMissesLoadNothingAhead() async throws {
    let file = SyntheticImage(size: 1 << 40)
    let image = try await open(file)
    var random = SeededGenerator(seed: testSeed("random misses"))
    let buffer = IOBuffer(count: 4096)
    for _ in 0..<4000 {
      let request = BlockRequest(
        .read, offset: GuestOffset(UInt64(random.below(1 << 28)) << 12), length: 4096,
        data: buffer.data)
      #expect(await image.serve(request, worker: 0, slot: 0) == .done)
    }
    let counts = image.l2.counts
    #expect(counts.loadsAhead < 80, "\(counts)")
    withExtendedLifetime(buffer) {}
  }

  @Test("Misses on 64 slices are 64 reads at once; 64 misses on one slice are one read")
  func missesRunAtOnce() throws {
    let host = SimulatedHost(seed: nil)
    let file = SyntheticImage(size: 1 << 40, host: host)
    try host.run {
      let image = try await self.open(file)
      for spread in [UInt64(3), 0] {
        file.resetCounts()
        let base = (spread == 0 ? 1 << 39 : 0) as UInt64
        await withTaskGroup(of: Void.self) { group in
          for slot in 0..<64 {
            group.addTask {
              let buffer = IOBuffer(count: 4096)
              let offset = base + UInt64(slot) * spread * image.slices.bytesPerSlice
              let request = BlockRequest(
                .read, offset: GuestOffset(offset), length: 4096, data: buffer.data)
              #expect(await image.serve(request, worker: 0, slot: slot) == .done)
              withExtendedLifetime(buffer) {}
            }
          }
        }
        #expect(file.reads(.l2) == (spread == 0 ? 1 : 64))
        #expect(file.depth(.l2) == (spread == 0 ? 1 : 64))
        #expect(file.depth(.data) >= 32)
      }
    }
  }
}
