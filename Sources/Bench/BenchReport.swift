import BlockCore
package import JSON
package import QCOW2Engine
import Reports

/// What `qublk bench --json` prints.
///
/// The keys are documented in the README and stay what they are.
package struct BenchReport {
  let image: String
  let format: String
  let cache: String
  /// What was asked for.
  package let options: BenchOptions
  /// What came of it.
  package let result: BenchResult
  /// What locks were taken; nil if nobody wants to know.
  let locks: BenchLocks?
  /// The engine's own, before the image was closed; nil where there is no engine.
  let statistics: ImageStatistics?

  /// A report of the image and how it was opened, the load, and the results.
  package init(
    image: String, format: String, cache: String, options: BenchOptions, result: BenchResult,
    locks: BenchLocks?, statistics: ImageStatistics?
  ) {
    self.image = image
    self.format = format
    self.cache = cache
    self.options = options
    self.result = result
    self.locks = locks
    self.statistics = statistics
  }

  private var seconds: Double { Double(result.nanoseconds) / 1e9 }
  private func perSecond(_ count: UInt64) -> JSONValue {
    .decimal(seconds > 0 ? Double(count) / seconds : 0, digits: 1)
  }

  /// An object.
  package var json: JSONValue {
    let total = result.total
    // As with qemu-img bench, flushes are no requests of the load.
    let requests = total[.read].requests + total[.write].requests
    let bytes = total[.read].bytes + total[.write].bytes
    let front: [JSONValue.Member] = [
      .init("image", .string(image)),
      .init("options", optionsJSON),
      .init("seconds", .decimal(seconds, digits: 6)),
      .init("requests", .count(requests)),
      .init("requests_per_second", perSecond(requests)),
      .init("bytes", .count(bytes)),
      .init("bytes_per_second", perSecond(bytes)),
      .init("flushes", .count(total[.flush].requests)),
    ]
    let known = Set(front.map(\.name))
    return .object(
      front + total.members.filter { !known.contains($0.name) }
        + (locks.map { [.init("locks", $0.json)] } ?? []) + [
          .init("engine", statistics?.json ?? .null),
          .init(
            "queues",
            .array(
              result.queues.enumerated().map { number, queue in
                .object([.init("queue", .count(number))] + queue.members)
              })),
        ])
  }

  private var optionsJSON: JSONValue {
    .object([
      .init("format", .string(format)),
      .init("cache", .string(cache)),
      .init("count", options.count.map { .count($0) } ?? .null),
      .init("seconds", options.seconds.map { .decimal($0, digits: 3) } ?? .null),
      .init("queues", .count(options.queues)),
      .init("depth", .count(options.depth)),
      .init("buffer_size", .count(options.bufferSize)),
      .init("step_size", .count(options.stepSize)),
      .init("offset", .count(options.offset)),
      .init("read_percent", .count(options.readPercent)),
      .init("random", .bool(options.isRandom)),
      .init("seed", .count(options.seed)),
      .init("flush_interval", .count(options.flushInterval)),
      .init("drain", .bool(options.drainsForFlush)),
      .init("pattern", .count(options.pattern)),
    ])
  }
}
