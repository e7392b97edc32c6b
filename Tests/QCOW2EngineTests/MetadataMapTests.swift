import Synchronization
import TestSupport
import Testing

@testable import QCOW2Engine

@Suite struct MetadataMapTests {
  private final class Shared: Sendable {
    let hasBegun = Atomic<Bool>(false)
    let isOver = Atomic<Bool>(false)
    let wrong = Atomic<Int>(0)
  }

  @Test("What lies between two places of a table is never taken for metadata")
  func whatLiesBetweenIsData() async throws {
    let low: Range<UInt64> = 100..<110
    let high: Range<UInt64> = 1_000_000..<1_000_020
    let map = try MetadataMap(
      fixed: [0..<1], refcountTable: low, l1Table: 50..<51, expectedTables: 8)
    let shared = Shared()
    let thread = ThreadExecutor()
    defer { thread.stop() }
    let reader = Task(executorPreference: thread) {
      shared.hasBegun.store(true, ordering: .relaxed)
      while !shared.isOver.load(ordering: .relaxed) {
        for cluster: UInt64 in [110, 500_000, 999_999] where map.contains(cluster) {
          shared.wrong.add(1, ordering: .relaxed)
        }
      }
    }
    while !shared.hasBegun.load(ordering: .relaxed) { await Task.yield() }
    for _ in 0..<2_000_000 {
      map.moveRefcountTable(to: high)
      map.moveRefcountTable(to: low)
    }
    shared.isOver.store(true, ordering: .relaxed)
    await reader.value
    #expect(shared.wrong.load(ordering: .relaxed) == 0)
    #expect(map.contains(100) && map.contains(109) && !map.contains(1_000_000))
    map.moveRefcountTable(to: high)
    #expect(!map.contains(109) && map.contains(1_000_019) && !map.contains(1_000_020))
  }

  @Test("The largest table at the highest place is known as such")
  func theLargestTable() throws {
    let place: Range<UInt64> = (1 << 47) - 65536..<1 << 47
    let map = try MetadataMap(fixed: [], refcountTable: place, l1Table: 1..<2, expectedTables: 8)
    #expect(map.contains(place.lowerBound) && map.contains(place.upperBound - 1))
    #expect(!map.contains(place.lowerBound - 1) && !map.contains(place.upperBound))
  }
}
