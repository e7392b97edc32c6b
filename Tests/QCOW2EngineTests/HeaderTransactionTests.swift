import BlockCore
import TestSupport
import Testing

@testable import QCOW2Engine

/// What the header points at changes in one step, or not at all: ``HeaderEditor/commit(_:after:of:undo:)``.
@Suite struct HeaderTransactionTests {
  /// The clusters that have a refcount.
  private func used(_ image: Image) async throws -> Int {
    var count = 0
    for cluster in HostCluster(0)..<image.allocator.freshFrom
    where try await image.allocator.refcount(of: cluster) != 0 {
      count += 1
    }
    return count
  }

  /// The clusters that a growth of the L1 table leaves in use although it failed; nil if it succeeds.
  private func leftBehind(byFailureOfWrite number: Int) throws -> Int? {
    var builder = ImageBuilder()
    builder.clusterBits = 9
    builder.size = 64 << 9
    let bench = Bench(builder, schedule: nil, isImmediate: true)
    let left = Box<Int?>(nil)
    try bench.host.run {
      let image = try await bench.open()
      let before = try await self.used(image)
      bench.faulty.fault = Fault(.write, number: number, errno: .io)
      do {
        try await image.exclusively { () async throws(ImageError) in
          try await image.growL1(to: 256)
        }
      } catch { left.value = try await self.used(image) - before }
      bench.faulty.fault = nil
      try await image.close()
      #expect(ImageVerifier(bench.bytes).check().errors == [])
    }
    return left.value
  }

  @Test("A larger L1 table whose steps fail gives its clusters back, unless the header may have it")
  func failedStepsGiveClustersBack() throws {
    var left: [Int] = []
    while let clusters = try leftBehind(byFailureOfWrite: left.count + 1) { left.append(clusters) }
    // The table, the refcounts of its 4 clusters, and the header last.
    #expect(left.count >= 3 && left.dropLast().allSatisfy { $0 == 0 } && left.last == 4, "\(left)")
  }
}
