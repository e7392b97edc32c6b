import JSON
import QCOW2Engine
import TestTools
import Testing

@testable import Daemon

/// For how long jobs keep all requests of a large image waiting.
@Suite(.enabled(if: hasQEMU, "needs qemu-img"), .serialized) struct LivePauseTests {
  /// In nanoseconds (docs/design.md, the cut of a live operation).
  private static let most: UInt64 = 50_000_000

  /// Runs all jobs that keep requests out; gives the longest time, and what each job took.
  private func longestPause() throws -> (pause: UInt64, seconds: [(job: String, Double)]) {
    // 128 GiB in clusters of 64 KiB, each with its place: 2 million entries, no data.
    let server = try LiveServer { image in
      try mustRun(
        "qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", image, "128G")
    }
    let guest = try LiveGuest(try server.engine)
    defer { guest.stop() }
    var seconds: [(job: String, Double)] = []
    for (job, arguments) in [
      ("snapshot-create", #"{"name": "s"}"#), ("resize", #"{"grow-by": 1099511627776}"#),
      ("check", "{}"), ("bitmap", #"{"bitmap": "b", "actions": [{"action": "add"}]}"#),
      ("amend", #"{"lazy-refcounts": true}"#), ("resize", #"{"grow-by": 1073741824}"#),
      ("amend", #"{"lazy-refcounts": false}"#), ("snapshot-delete", #"{"name": "s"}"#),
    ] {
      let start = now()
      try server.mustRun(job, arguments)
      seconds.append((job, now() - start))
      guest.goOn(writes: 8)
    }
    return (try server.engine.statistics.longestPause, seconds)
  }

  @Test("Jobs on an image of 2 million clusters keep requests waiting for 50 ms at most")
  func pausesAreShort() throws {
    var best = UInt64.max
    // A machine that is busy with something else may stop us for longer.
    for _ in 0..<3 where best > Self.most {
      let (pause, seconds) = try longestPause()
      print("live: longest pause \(Double(pause) / 1e6) ms;", seconds.map { "\($0.job) \($0.1) s" })
      best = min(best, pause)
    }
    #expect(best <= Self.most)
  }
}
