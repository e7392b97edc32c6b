import BlockCore
package import JSON

// How a daemon hands its counts to `qublk stats`, which is the same program: nothing to rely on.
// Whole histograms travel, so that percentiles of an interval, or of all queues, can be made of
// them.

extension QueueReport {
  /// The message.
  package var wire: JSONValue {
    .object([
      .init("counts", .array(counts.map(JSONValue.bits))),
      .init("operations", .array(operations.map(\.wire))),
    ])
  }

  /// Reads a message; nil if it is another version's.
  package init?(wire: JSONValue) {
    self.init()
    guard case .array(let counts) = wire["counts"], counts.count == self.counts.count,
      case .array(let operations) = wire["operations"], operations.count == self.operations.count
    else { return nil }
    for (index, count) in counts.enumerated() {
      guard let count = count.bits else { return nil }
      self.counts[index] = count
    }
    for (index, operation) in operations.enumerated() {
      guard let operation = OperationReport(wire: operation) else { return nil }
      self.operations[index] = operation
    }
  }
}

extension OperationReport {
  fileprivate var wire: JSONValue {
    .object([
      .init("bytes", .bits(bytes)),
      .init("slow", .bits(slow)),
      .init("sum", .bits(latency.sum)),
      .init("max", .bits(latency.maximum)),
      .init("buckets", .string(latency.text)),
    ])
  }

  fileprivate init?(wire: JSONValue) {
    guard let bytes = wire["bytes"]?.bits, let slow = wire["slow"]?.bits,
      let sum = wire["sum"]?.bits, let maximum = wire["max"]?.bits,
      let latency = wire["buckets"]?.string.flatMap({
        LatencySnapshot(parsing: $0, sum: sum, maximum: maximum)
      })
    else { return nil }
    self.bytes = bytes
    self.slow = slow
    self.latency = latency
  }
}

extension JSONValue {
  /// All 64 bits of a counter.
  fileprivate static func bits(_ value: UInt64) -> JSONValue {
    .integer(Int64(bitPattern: value))
  }

  fileprivate var bits: UInt64? { integer.map { UInt64(bitPattern: $0) } }
}
