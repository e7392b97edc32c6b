import BlockCore
import TestSupport
import Testing

@testable import QCOW2Engine

@Suite struct InFlightRangesTests {
  @Test(
    "Overlapping ranges take turns, others do not wait", arguments: 1...20 as ClosedRange<UInt64>)
  func overlappingRangesTakeTurns(seed: UInt64) throws {
    let host = SimulatedHost(seed: seed)
    let ranges = InFlightRanges(groupBits: 6)
    let holders = Box<[Range<GuestCluster>]>([])
    let together = Box(0)
    try host.run {
      await withTaskGroup(of: Void.self) { group in
        for number in 0..<40 as Range<UInt64> {
          let start = GuestCluster(number % 2 * 64 + number * 7 % 50)
          let range = start..<(start + 1 + number % 9)
          group.addTask {
            await ranges.acquire(range)
            #expect(!holders.value.contains { $0.overlaps(range) })
            holders.value.append(range)
            together.value = max(together.value, holders.value.count)
            await host.complete("holding \(range)")
            holders.value.removeAll { $0 == range }
            ranges.release(range)
          }
        }
      }
    }
    #expect(together.value > 2)
  }
}
