import BlockCore
import Daemon
import JSON
import QCOW2Tools
import Reports

/// What `qublk stats` prints for people.
struct StatsTable {
  let device: DeviceName
  let report: DeviceReport
  /// The length of the interval that is reported; nil for the device's whole life.
  let seconds: Double?

  var text: String {
    let time = seconds.map { ", last \(JSONValue.decimalText($0, digits: 1)) s" } ?? ""
    return "\(device.path) (\(printable(report.image)))\(time)\n" + operations + "\n" + queues
      + engine
      + events
  }

  /// One row for each operation that there was, over all queues; latencies in microseconds.
  private var operations: String {
    let total = report.total
    var rows = [
      [
        "OPERATION", seconds == nil ? "REQUESTS" : "REQUESTS/S",
        seconds == nil ? "BYTES" : "BYTES/S",
        "SLOW", "MEAN", "P50", "P90", "P99", "P99.9", "MAX µs",
      ]
    ]
    for operation in QueueReport.operations where total[operation].requests > 0 {
      let row = total[operation]
      let latency = row.latency
      rows.append(
        [operation.name, rate(row.requests), size(row.bytes), String(row.slow)]
          + [
            latency.mean, latency.percentile(perMillion: 500_000),
            latency.percentile(perMillion: 900_000), latency.percentile(perMillion: 990_000),
            latency.percentile(perMillion: 999_000), latency.maximum,
          ].map { JSONValue.decimalText(Double($0) / 1000, digits: 1) })
    }
    return Self.aligned(rows)
  }

  private var queues: String {
    var rows = [
      [
        "QUEUE", seconds == nil ? "REQUESTS" : "REQUESTS/S", "NOW", "HITS", "MISSES", "HIT %",
        "HOST I/O", "SYNCS", "ENTERS", "FAILED", "COPIED",
      ]
    ]
    for (number, queue) in report.queues.enumerated() {
      rows.append(row(String(number), queue))
    }
    if report.queues.count > 1 { rows.append(row("all", report.total)) }
    return Self.aligned(rows)
  }

  private func row(_ name: String, _ queue: QueueReport) -> [String] {
    [name, rate(queue.requests)]
      + [queue.inFlight, queue.hits, queue.misses].map { String($0) }
      + [JSONValue.decimalText(queue.hitRatio * 100, digits: 1)]
      + [
        queue.hostIOs, queue[.syncs], queue[.enters], queue[.failures], queue[.userCopies],
      ].map { String($0) }
  }

  /// Two lines on the engine's caches and flushes; nothing where there is no engine.
  private var engine: String {
    guard let l2 = report.engine["l2_cache"], let refcounts = report.engine["refcount_cache"]
    else { return "" }
    func number(_ name: String) -> Int64 { report.engine[name]?.integer ?? 0 }
    let pause = report.engine["longest_pause_ms"]?.line ?? "0"
    return "\nL2 cache: \(cache(l2)); refcount cache: \(cache(refcounts))\n"
      + "flush rounds: \(number("flush_rounds")), dirty for \(number("dirty_ms")) ms; clusters: "
      + "\(number("clusters_reserved")) reserved, \(number("clusters_returned")) returned, \(number("pending_frees") &+ number("durable_frees")) to free; bitmaps: \(number("bitmaps"))\n"
      + "leaks of a session that died: \(report.engine["leaks"]?.string ?? "none"), "
      + "\(number("leaks_returned")) clusters given back\n"
      + "pauses of all requests: \(number("pauses")), \(pause) ms at most\n"
  }

  /// A line for each kind of event, since the device was added; nothing if there were none.
  private var events: String {
    guard case .array(let events) = report.events, !events.isEmpty else { return "" }
    let lines = events.compactMap { event -> String? in
      guard let kind = event["kind"]?.string, let count = event["count"]?.integer else {
        return nil
      }
      let text = event["last"]?["text"]?.string ?? ""
      return "\(kind): \(count), the last: \(text)\n"
    }
    return "\nstate: \(report.condition.rawValue)\n" + lines.joined()
  }

  private func cache(_ cache: JSONValue) -> String {
    func number(_ name: String) -> Int64 { cache[name]?.integer ?? 0 }
    return "\(number("resident")) of \(number("slots")) slices of \(number("slice_bytes")) bytes, "
      + "\(number("dirty")) dirty, \(number("misses")) misses, \(number("evictions")) evictions"
  }

  private func rate(_ count: UInt64) -> String {
    seconds.map { JSONValue.decimalText(Double(count) / $0, digits: 1) } ?? String(count)
  }

  private func size(_ bytes: UInt64) -> String {
    guard let seconds else { return SizeText.short(bytes) }
    return SizeText.short(UInt64(min(Double(bytes) / seconds, 0x1p63)))
  }

  /// Columns as wide as their widest text, all but the first to the right.
  private static func aligned(_ rows: [[String]]) -> String {
    let widths = rows[0].indices.map { column in rows.map { $0[column].count }.max() ?? 0 }
    return rows.map { row in
      let cells = row.indices.map { column in
        let space = String(repeating: " ", count: widths[column] - row[column].count)
        return column == 0 ? row[column] + space : space + row[column]
      }
      return cells.joined(separator: "  ") + "\n"
    }.joined()
  }
}
