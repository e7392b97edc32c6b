import BlockCore
import QCOW2Engine
import TestSupport
import Testing

/// What the hit path maps by itself, and what it must leave to others.
@Suite struct HitMapTests {
  private static let clusterSize: UInt64 = 512
  /// Ends inside the last cluster but for whole sectors; all of it is mapped.
  private static let size: UInt64 = 64 << 10

  private func bench(clusterBits: Int = 9) -> Bench {
    var builder = ImageBuilder()
    builder.clusterBits = clusterBits
    builder.size = Int(Self.size)
    for cluster in 0..<(Int(Self.size) >> clusterBits) { builder.mappings[cluster] = .data }
    return Bench(builder, schedule: nil, isImmediate: true)
  }

  /// The bytes of each transfer that the hit path plans; nil for the slow path.
  private func plan(
    _ operation: BlockOperation, _ offset: UInt64, _ length: UInt64, _ image: Image
  ) -> [Int]? {
    withUnsafeTemporaryAllocation(of: HostTransfer.self, capacity: 300) { plan in
      let request = BlockRequest(operation, offset: GuestOffset(offset), length: length)
      guard case .transfers(let count) = image.plan(request, worker: 0, slot: 0, into: plan)
      else { return nil }
      defer { _ = image.finish(worker: 0, slot: 0, failed: true) }
      return plan[..<count].map { Int($0.length) }
    }
  }

  private func warm(_ image: Image) async {
    let buffer = IOBuffer(count: Int(Self.size))
    let all = BlockRequest(.read, length: Self.size, data: buffer.data)
    #expect(await image.serve(all, worker: 0, slot: 0) == .done)
    withExtendedLifetime(buffer) {}
  }

  @Test(
    "Exactly what lies inside the disk is mapped, whatever the numbers", arguments: [9, 12, 16])
  func onlyInsideTheDisk(clusterBits: Int) throws {
    let bench = bench(clusterBits: clusterBits)
    try bench.host.run {
      let image = try await bench.open()
      await warm(image)
      let near: [UInt64] = [
        0, 1, 511, 512, 513, 1024, 4096, 4608, 65024, 65535, 65536, 65537, 66048, 1 << 20, 1 << 32,
        1 << 63,
      ]
      let values = near + near.map { 0 &- $0 }
      for operation in [BlockOperation.read, .write] {
        for offset in values {
          for length in values {
            let isInside =
              (offset | length) & 511 == 0 && offset <= Self.size && length <= Self.size - offset
            let planned = plan(operation, offset, length, image)
            if length == 0 && isInside { continue }  // nothing to carry out, either way
            let bytes = planned.map { $0.reduce(0, +) }
            let isRight = isInside ? bytes == Int(length) : planned == nil
            #expect(isRight, "\(operation) of \(length) at \(offset): \(planned ?? [])")
          }
        }
      }
      // The stamps of all those that were turned back are gone, or this would wait for ever.
      try await image.close()
    }
  }

  @Test("The flags of an L2 entry are heeded, and no part of its offset", arguments: 0..<64)
  func flagsAreHeeded(bit: Int) throws {
    if (9..<56).contains(bit) { return }  // the offset itself
    let bench = bench()
    try bench.host.run {
      let image = try await bench.open()
      let table = Int(bench.bytes.be64(Int(bench.bytes.be64(40))) & 0x00ff_ffff_ffff_fe00)
      let entry = bench.bytes.be64(table + 40)
      bench.bytes.put64(entry ^ 1 << UInt64(bit), table + 40)
      // The neighbour brings the slice in.
      let buffer = IOBuffer(count: 512)
      let neighbour = BlockRequest(.read, length: 512, data: buffer.data)
      #expect(await image.serve(neighbour, worker: 0, slot: 0) == .done)
      withExtendedLifetime(buffer) {}
      let place = entry & 0x00ff_ffff_ffff_fe00
      // Bit 0 is the zero flag, 62 compression, 63 COPIED; QEMU ignores the others, and so do we.
      let read = self.place(.read, of: 5, image)
      #expect(read == (bit == 62 ? nil : bit == 0 ? 0 : place))
      #expect(self.place(.write, of: 5, image) == ([0, 62, 63].contains(bit) ? nil : place))
      #expect(self.place(.write, of: 6, image) == place + 512)
    }
  }

  /// Where the hit path finds a cluster; 0 for zeros, nil for the slow path.
  private func place(_ operation: BlockOperation, of cluster: UInt64, _ image: Image) -> UInt64? {
    withUnsafeTemporaryAllocation(of: HostTransfer.self, capacity: 8) { plan in
      let request = BlockRequest(operation, offset: GuestOffset(cluster * 512), length: 512)
      guard case .transfers(1) = image.plan(request, worker: 0, slot: 0, into: plan)
      else { return nil }
      defer { _ = image.finish(worker: 0, slot: 0, failed: true) }
      if case .zeroes = plan[0].kind { return 0 }
      return plan[0].hostOffset.bytes
    }
  }

  @Test("A request with a flag is left to the slow path, and leaves no stamp")
  func flagsOfRequests() throws {
    let bench = bench()
    try bench.host.run {
      let image = try await bench.open()
      await warm(image)
      var request = BlockRequest(.write, length: 512, isFUA: true)
      for _ in 0..<2 {
        let isPlanned = withUnsafeTemporaryAllocation(of: HostTransfer.self, capacity: 8) { plan in
          if case .transfers = image.plan(request, worker: 0, slot: 0, into: plan) { return true }
          return false
        }
        #expect(!isPlanned)
        request.isFUA = false
        request.compresses = true
      }
      try await image.close()
    }
  }
}
