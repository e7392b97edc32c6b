import BlockCore
import JSON
import QCOW2Engine
import TestTools
import Testing
import Serving
import Uring

@testable import Daemon
@testable import qublk
@testable import Reports

@Suite struct StatsTests {
  private func report() -> DeviceReport {
    let counters = QueueCounters()
    for nanoseconds: UInt64 in [100, 200, 300, 5_000_000] {
      counters.arrivals.add()
      counters.noteEnd(.read, nanoseconds: nanoseconds, bytes: 4096)
    }
    counters.arrivals.add(2)
    counters.noteSlow(.write)
    counters.noteEnd(.write, nanoseconds: 1 << 41, bytes: 0)
    counters.failures.add()
    counters.transfers.add(4)
    counters.loop.writes.add(3)
    counters.loop.enters.add(.max)
    return DeviceReport(
      time: 5_000_000_000, start: 1_000_000_000, image: "/a b/ü.qcow2",
      queues: [QueueReport(counters), QueueReport(QueueCounters())],
      engine: ImageStatistics().json)
  }

  @Test func aReportSurvivesTheWayThroughTheSocket() throws {
    let report = report()
    let text = ControlMessage.result(report.wire).line
    #expect(!text.contains("\n"), "one line is one message")
    guard case .result(let received) = ControlMessage(parsing: text.utf8) else {
      Issue.record("no report")
      return
    }
    #expect(DeviceReport(wire: received) == report)
  }

  @Test func aReportOfAnotherLayoutIsNone() throws {
    let whole = report().wire
    guard case .object(let members) = whole else { return }
    for index in members.indices {
      var fewer = members
      fewer.remove(at: index)
      #expect(DeviceReport(wire: .object(fewer)) == nil)
    }
    for bad in ["1", "1:", "x:1", "1:x", "99999:1", "-1:1"] {
      #expect(LatencySnapshot(parsing: bad, sum: 0, maximum: 0) == nil, "\(bad)")
    }
  }

  @Test func whatIsCountedAddsUp() {
    let total = report().total
    #expect(total.requests == 5)
    #expect(total.inFlight == 1)
    #expect(total.hits == 4)
    #expect(total.misses == 1)
    #expect(total.hitRatio == 0.8)
    #expect(total.hostIOs == 7)
    #expect(total[.read].bytes == 16384)
    #expect(QueueReport(QueueCounters()).hitRatio == 1)
  }

  @Test func anIntervalHasWhatCameSince() throws {
    let report = report()
    var later = report
    later.time += 1_000_000_000
    let nothing = try #require(later.since(report)).total
    #expect(nothing.requests == 0 && nothing[.read].latency.maximum == 0 && nothing[.enters] == 0)
    let empty = DeviceReport(
      time: 2_000_000_000, start: report.start, image: "", queues: [QueueReport(), QueueReport()],
      engine: .null)
    #expect(report.since(empty)?.total[.read].latency.count == 4)
    #expect(report.since(report) == nil)
  }

  @Test func anotherDeviceWithTheSameNumberIsNoInterval() {
    var first = report()
    first.time -= 1
    first.start -= 1
    // Its counters are anything, higher or lower: a difference would be none.
    #expect(report().since(first) == nil)
  }

  @Test func aRateWithoutBoundsIsStillAText() {
    var report = report()
    report.queues[0].operations[0].bytes = .max
    let text = StatsTable(device: DeviceName(id: 3), report: report, seconds: 1e-9).text
    #expect(text.contains("read"))
  }

  @Test func theKeysOfTheReportAreStable() throws {
    guard case .object(let members) = report().json(DeviceName(id: 3), seconds: 1.5) else {
      Issue.record("no object")
      return
    }
    #expect(
      members.map(\.name) == [
        "device", "id", "image", "interval", "requests", "in_flight", "failures", "hits", "misses",
        "hit_ratio", "host_ios", "host_syncs", "host_allocations", "io_uring_enters", "turns",
        "polls_found", "polls_missed", "poll_ns", "unregistered", "user_copies", "driver_errors",
        "operations", "engine", "condition", "events", "sandbox", "queues",
      ])
    let json = JSONValue.object(members)
    #expect(json["interval"] == .fraction("1.500000"))
    #expect(json["io_uring_enters"] == .integer(.max))
    let read = try #require(json["operations"]?["read"])
    #expect(read["requests"] == .integer(4))
    let latency = try #require(read["latency_ns"])
    let names = ["min", "p50", "p90", "p99", "p99_9", "max", "mean"]
    let values: [Int64] = names.compactMap { latency[$0]?.integer }
    #expect(values == [100, 200, 5_000_000, 5_000_000, 5_000_000, 5_000_000, 1_250_150])
    #expect(json["engine"]?["l2_cache"]?["slots"] == .integer(0))
  }

  @Test func theTableIsAsWideAsItsTexts() {
    let text = StatsTable(device: DeviceName(id: 3), report: report(), seconds: nil).text
    #expect(
      text == """
        /dev/ublkb3 (/a b/ü.qcow2)
        OPERATION  REQUESTS   BYTES  SLOW          MEAN           P50           P90           P99         P99.9        MAX µs
        read              4  16 KiB     0        1250.2           0.2        5000.0        5000.0        5000.0        5000.0
        write             1     0 B     1  2199023255.6  2199023255.6  2199023255.6  2199023255.6  2199023255.6  2199023255.6

        QUEUE  REQUESTS  NOW  HITS  MISSES  HIT %  HOST I/O  SYNCS                ENTERS  FAILED  COPIED
        0             5    1     4       1   80.0         7      0  18446744073709551615       1       0
        1             0    0     0       0  100.0         0      0                     0       0       0
        all           5    1     4       1   80.0         7      0  18446744073709551615       1       0

        L2 cache: 0 of 0 slices of 0 bytes, 0 dirty, 0 misses, 0 evictions; refcount cache: 0 of 0 slices of 0 bytes, 0 dirty, 0 misses, 0 evictions
        flush rounds: 0, dirty for 0 ms; clusters: 0 reserved, 0 returned, 0 to free; bitmaps: 0
        leaks of a session that died: none, 0 clusters given back
        pauses of all requests: 0, 0.000 ms at most

        """)
  }

  @Test(.enabled(if: !hasDriver, "there is a ublk driver, and perhaps devices"))
  func aDeviceThatIsNotThereIsAnError() throws {
    let outcome = try qublk("stats", "7")
    #expect(outcome.status == 1)
    #expect(outcome.errors == "qublk: ublkb7: no such device\n")
    #expect(try qublk("stats", "7", "--watch", "0").status == 64)
  }
}
