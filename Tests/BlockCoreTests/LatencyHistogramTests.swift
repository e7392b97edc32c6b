import Glibc
import TestTools
import Testing

@testable import BlockCore

@Suite struct LatencyHistogramTests {
  private func histogram(_ durations: some Sequence<UInt64>) -> LatencySnapshot {
    let histograms = LatencyHistograms(count: 1)
    for duration in durations { histograms.record(duration, in: 0) }
    return histograms.snapshot(of: 0)
  }

  @Test func bucketsFollowEachOtherWithoutAGap() {
    var next: UInt64 = 0
    for bucket in 0..<LatencyHistograms.bucketCount {
      let durations = LatencyHistograms.durations(ofBucket: bucket)
      #expect(durations.lowerBound == next)
      #expect(LatencyHistograms.bucket(of: durations.lowerBound) == bucket)
      #expect(LatencyHistograms.bucket(of: durations.upperBound) == bucket)
      let width = durations.upperBound - durations.lowerBound + 1
      #expect(width == 1 || width * 256 <= durations.lowerBound)
      next = durations.upperBound + 1
    }
    #expect(next == LatencyHistograms.limit)
  }

  @Test func nothingCountedIsAllZeros() {
    let empty = histogram([])
    #expect(empty == LatencySnapshot())
    #expect(
      [empty.count, empty.minimum, empty.mean, empty.maximum, empty.percentile(perMillion: 1)]
        == [0, 0, 0, 0, 0])
  }

  @Test func smallDurationsAreExact() {
    let all = histogram(1...100)
    #expect([all.count, all.minimum, all.mean, all.maximum] == [100, 1, 50, 100])
    #expect(
      [0, 10_000, 500_000, 990_000, 999_000, 2_000_000].map(all.percentile) == [
        1, 1, 50, 99, 100, 100,
      ])
  }

  @Test func percentilesAreWithinAFifthOfAPercent() {
    let seed = testSeed("histogram", fallback: .random(in: 0...UInt64.max))
    var generator = SeededGenerator(seed: seed)
    let durations = (0..<10_000).map { _ in generator.next() >> (24 + generator.next() % 36) }
    let all = histogram(durations)
    let sorted = durations.sorted()
    #expect(all.maximum == sorted[9999])
    #expect(all.mean == durations.reduce(0, +) / 10_000)
    for (share, rank) in [(100_000, 999), (500_000, 4999), (900_000, 8999), (999_000, 9989)] {
      let exact = sorted[rank]
      let found = all.percentile(perMillion: UInt64(share))
      let error = exact > found ? exact - found : found - exact
      #expect(error * 500 <= exact, "\(share): \(found) for \(exact)")
    }
  }

  @Test func whatIsTooLongIsCountedInTheLastBucket() {
    let all = histogram([5, LatencyHistograms.limit, .max >> 1])
    #expect(all.count == 3)
    #expect(all.maximum == .max >> 1)
    #expect(all.percentile(perMillion: 1_000_000) == .max >> 1)
    #expect(all.percentile(perMillion: 300_000) == 5)
  }

  @Test func histogramsSideBySideDoNotMix() {
    let histograms = LatencyHistograms(count: 3)
    histograms.record(7, in: 0)
    histograms.record(.max, in: 1)
    histograms.record(9, in: 2)
    #expect((0..<3).map { histograms.snapshot(of: $0).count } == [1, 1, 1])
    #expect((0..<3).map { histograms.snapshot(of: $0).maximum } == [7, .max, 9])
  }

  @Test func mergedIsAsIfCountedTogether() {
    var merged = histogram([1, 1_000_000, 3])
    merged.merge(histogram([2, 40_000_000_000]))
    #expect(merged == histogram([1, 2, 3, 1_000_000, 40_000_000_000]))
  }

  @Test func aDifferenceHasWhatCameInBetween() {
    let histograms = LatencyHistograms(count: 1)
    for duration: UInt64 in [100, 5_000_000] { histograms.record(duration, in: 0) }
    let before = histograms.snapshot(of: 0)
    for duration: UInt64 in [200, 300] { histograms.record(duration, in: 0) }
    let between = histograms.snapshot(of: 0).since(before)
    #expect(between == histogram([200, 300]))
    #expect(before.since(before) == LatencySnapshot())
  }

  @Test func aReaderSeesAWritersCountsGrow() async {
    let histograms = Shared()
    let writer = Task.detached {
      for duration in 0..<50_000 { histograms.value.record(UInt64(duration), in: 0) }
    }
    var last: UInt64 = 0
    for _ in 0..<10 {
      let count = histograms.value.snapshot(of: 0).count
      #expect(count >= last)
      last = count
    }
    await writer.value
    #expect(histograms.value.snapshot(of: 0).count == 50_000)
  }

  private final class Shared: Sendable {
    let value = LatencyHistograms(count: 1)
  }
}
