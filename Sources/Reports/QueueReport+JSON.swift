package import BlockCore
package import JSON

// The keys are documented in the README and stay what they are.

extension QueueReport {
  /// The members that `qublk stats` and `qublk bench` have in common.
  package var members: [JSONValue.Member] {
    [
      .init("requests", .count(requests)),
      .init("in_flight", .count(inFlight)),
      .init("failures", .count(self[.failures])),
      .init("hits", .count(hits)),
      .init("misses", .count(misses)),
      .init("hit_ratio", .decimal(hitRatio, digits: 6)),
      .init("host_ios", .count(hostIOs)),
      .init("host_syncs", .count(self[.syncs])),
      .init("host_allocations", .count(self[.allocations])),
      .init("io_uring_enters", .count(self[.enters])),
      .init("turns", .count(self[.turns])),
      .init("polls_found", .count(self[.pollsFound])),
      .init("polls_missed", .count(self[.pollsMissed])),
      .init("poll_ns", .count(self[.pollTime])),
      .init("unregistered", .count(self[.unregistered])),
      .init("user_copies", .count(self[.userCopies])),
      .init("driver_errors", .count(self[.driverErrors])),
      .init(
        "operations",
        .object(Self.operations.map { .init($0.name, self[$0].json) })),
    ]
  }
}

extension OperationReport {
  fileprivate var json: JSONValue {
    .object([
      .init("requests", .count(requests)),
      .init("bytes", .count(bytes)),
      .init("slow", .count(slow)),
      .init("latency_ns", latency.json),
    ])
  }
}

extension LatencySnapshot {
  /// Minimum, percentiles, maximum and mean.
  package var json: JSONValue {
    .object([
      .init("min", .count(minimum)),
      .init("p50", .count(percentile(perMillion: 500_000))),
      .init("p90", .count(percentile(perMillion: 900_000))),
      .init("p99", .count(percentile(perMillion: 990_000))),
      .init("p99_9", .count(percentile(perMillion: 999_000))),
      .init("max", .count(maximum)),
      .init("mean", .count(mean)),
    ])
  }
}
