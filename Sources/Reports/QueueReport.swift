package import BlockCore
package import Serving
import Uring

/// What was asked of one operation, and how it went.
package struct OperationReport: Equatable {
  /// Bytes of the requests that succeeded.
  package var bytes: UInt64 = 0
  /// Requests that the hit path could not answer.
  package var slow: UInt64 = 0
  /// All that have ended.
  package var latency = LatencySnapshot()

  /// The number of requests that have ended.
  package var requests: UInt64 { latency.count }
}

/// The statistics of one queue, or of several together, at one moment.
package struct QueueReport: Equatable {
  /// What is reported, in the order of the raw values.
  package static let operations: [BlockOperation] = [.read, .write, .flush, .discard, .writeZeroes]

  /// By ``BlockOperation``'s raw value.
  var operations = Array(repeating: OperationReport(), count: QueueReport.operations.count)
  /// The plain counters, by name, in the order in which they are printed.
  var counts = Array(repeating: UInt64(0), count: Count.allCases.count)

  /// The plain counters; the raw value is their name in the messages of a daemon.
  package enum Count: String, CaseIterable {
    case arrivals, failures, refusals, transfers, unregistered
    case userCopies = "user_copies"
    case driverErrors = "driver_errors"
    case pollsFound = "polls_found"
    case pollsMissed = "polls_missed"
    case pollTime = "poll_ns"
    case enters, turns, reads, writes, syncs, allocations

    var index: Int { Self.allCases.firstIndex(of: self) ?? 0 }
  }

  init() {}

  /// What a queue has counted until now.
  package init(_ counters: QueueCounters) {
    for operation in Self.operations {
      operations[Int(operation.rawValue)] = OperationReport(
        bytes: counters.bytes(operation), slow: counters.slowRequests(operation),
        latency: counters.latency(operation))
    }
    counts = Count.allCases.map { Self.value($0, of: counters) }
  }

  private static func value(_ count: Count, of counters: QueueCounters) -> UInt64 {
    switch count {
    case .arrivals: counters.arrivals.current
    case .failures: counters.failures.current
    case .refusals: counters.refusals.current
    case .transfers: counters.transfers.current
    case .unregistered: counters.unregisteredRequests.current
    case .userCopies: counters.userCopies.current
    case .driverErrors: counters.driverErrors.current
    case .pollsFound: counters.loop.pollsFound.current
    case .pollsMissed: counters.loop.pollsMissed.current
    case .pollTime: counters.loop.pollNanoseconds.current
    case .enters: counters.loop.enters.current
    case .turns: counters.loop.turns.current
    case .reads: counters.loop.reads.current
    case .writes: counters.loop.writes.current
    case .syncs: counters.loop.syncs.current
    case .allocations: counters.loop.allocations.current
    }
  }

  /// All of them as one.
  package init(total queues: [QueueReport]) {
    for queue in queues {
      for index in operations.indices {
        operations[index].bytes &+= queue.operations[index].bytes
        operations[index].slow &+= queue.operations[index].slow
        operations[index].latency.merge(queue.operations[index].latency)
      }
      for index in counts.indices { counts[index] &+= queue.counts[index] }
    }
  }

  /// What has happened since an earlier report of the same queue.
  package func since(_ earlier: QueueReport) -> QueueReport {
    var difference = self
    for index in operations.indices {
      difference.operations[index].bytes &-= earlier.operations[index].bytes
      difference.operations[index].slow &-= earlier.operations[index].slow
      difference.operations[index].latency = operations[index].latency.since(
        earlier.operations[index].latency)
    }
    for index in counts.indices { difference.counts[index] &-= earlier.counts[index] }
    return difference
  }

  // MARK: Derived

  /// What was asked of one operation.
  package subscript(operation: BlockOperation) -> OperationReport {
    operations[Int(operation.rawValue)]
  }
  /// One plain counter.
  package subscript(count: Count) -> UInt64 { counts[count.index] }

  /// Requests that have ended, the refused ones too.
  package var requests: UInt64 { operations.reduce(self[.refusals]) { $0 &+ $1.requests } }
  /// Requests that have not ended.
  package var inFlight: UInt64 { self[.arrivals] > requests ? self[.arrivals] - requests : 0 }
  /// Reads and writes that the hit path could not answer.
  package var misses: UInt64 { self[.read].slow &+ self[.write].slow }
  /// Reads and writes that the hit path answered; of those that have ended.
  package var hits: UInt64 {
    let all = self[.read].requests &+ self[.write].requests
    return all > misses ? all - misses : 0
  }
  /// Reads and writes of host files, by both paths.
  package var hostIOs: UInt64 { self[.transfers] &+ self[.reads] &+ self[.writes] }
  /// Of all reads and writes, the share that the hit path answered; 1 if there were none.
  package var hitRatio: Double {
    let all = hits &+ misses
    return all == 0 ? 1 : Double(hits) / Double(all)
  }
}

extension BlockOperation {
  /// As in JSON.
  package var name: String {
    switch self {
    case .read: "read"
    case .write: "write"
    case .flush: "flush"
    case .discard: "discard"
    case .writeZeroes: "write_zeroes"
    }
  }
}
