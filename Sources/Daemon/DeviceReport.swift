import BlockCore
import Glibc
package import JSON
import QCOW2Engine
package import Reports

/// All that a daemon tells of its device, at one moment.
package struct DeviceReport: Equatable {
  /// Changes with every change of the messages.
  static let layout: Int64 = 5

  /// When, in nanoseconds of CLOCK_MONOTONIC.
  package var time: UInt64
  /// When the daemon began to count, by the same clock: what tells it from others with its number.
  var start: UInt64
  /// What is served.
  package var image: String
  /// One element for each queue.
  package var queues: [QueueReport]
  /// The engine's own statistics, as they are printed; null where there is no engine.
  package var engine: JSONValue
  /// What went wrong, since the device was added; an array.
  package var events = JSONValue.array([])
  /// How the device fares.
  package var condition = DeviceCondition.good
  /// What is in force of the daemon's sandbox, by the names of its parts.
  package var sandbox: [String] = []

  /// All queues as one.
  package var total: QueueReport { QueueReport(total: queues) }

  /// What has happened since an earlier report; nil if that was of another daemon, which may have
  /// had the same number.
  package func since(_ earlier: DeviceReport) -> DeviceReport? {
    guard start == earlier.start, queues.count == earlier.queues.count, time > earlier.time
    else { return nil }
    var difference = self
    difference.queues = zip(queues, earlier.queues).map { $0.since($1) }
    return difference
  }
}

// MARK: - Between daemon and command

extension DeviceReport {
  var wire: JSONValue {
    .object([
      .init("layout", .integer(Self.layout)),
      .init("time", .integer(Int64(clamping: time))),
      .init("start", .integer(Int64(clamping: start))),
      .init("image", .string(image)),
      .init("queues", .array(queues.map(\.wire))),
      .init("engine", engine),
      .init("events", events),
      .init("condition", .string(condition.rawValue)),
      .init("sandbox", .array(sandbox.map(JSONValue.string))),
    ])
  }

  /// Reads a message; nil if it is not one of this layout.
  package init?(wire: JSONValue) {
    guard wire["layout"]?.integer == Self.layout, let time = wire["time"]?.integer, time >= 0,
      let start = wire["start"]?.integer, start >= 0, let image = wire["image"]?.string,
      case .array(let queues) = wire["queues"], let engine = wire["engine"],
      let events = wire["events"],
      let condition = wire["condition"]?.string.flatMap(DeviceCondition.init),
      let sandbox = wire["sandbox"]?.array
    else { return nil }
    self.time = UInt64(time)
    self.start = UInt64(start)
    self.image = image
    self.engine = engine
    self.events = events
    self.condition = condition
    self.sandbox = sandbox.compactMap(\.string)
    self.queues = []
    for queue in queues {
      guard let queue = QueueReport(wire: queue) else { return nil }
      self.queues.append(queue)
    }
  }
}

// MARK: - For the user

extension DeviceReport {
  /// What `qublk stats --json` prints.
  ///
  /// - Parameters:
  ///   - name: The device.
  ///   - seconds: The length of the interval that is reported; nil for the device's whole life.
  /// - Returns: An object.
  package func json(_ name: DeviceName, seconds: Double?) -> JSONValue {
    .object(
      [
        .init("device", .string(name.path)),
        .init("id", .count(name.id)),
        .init("image", .string(image)),
        .init("interval", seconds.map { .decimal($0, digits: 6) } ?? .null),
      ] + total.members + [
        .init("engine", engine),
        .init("condition", .string(condition.rawValue)),
        .init("events", events),
        .init("sandbox", .array(sandbox.map(JSONValue.string))),
        .init(
          "queues",
          .array(
            queues.enumerated().map { number, queue in
              .object([.init("queue", .count(number))] + queue.members)
            })),
      ])
  }
}
