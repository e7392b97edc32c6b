import BlockCore
import JSON
import QCOW2Engine
import Reports

// The keys are documented in the README and stay what they are.

extension ImageEvents.Summary {
  /// An array with an object for each kind of event that there was.
  var json: JSONValue {
    .array(
      ImageEvent.Kind.allCases.filter { self[$0].count > 0 }.map { kind in
        let record = self[kind]
        return .object([
          .init("kind", .string(kind.name)),
          .init("count", .count(record.count)),
          .init("first", record.first?.json(time: record.firstTime) ?? .null),
          .init("last", record.last?.json(time: record.lastTime) ?? .null),
        ])
      })
  }
}

extension ImageEvent {
  fileprivate func json(time: Int64) -> JSONValue {
    .object([
      .init("time", .integer(time)),
      .init("file", .string(object.path)),
      .init("role", .string(object.role.rawValue)),
      .init("operation", operation.map { .string($0.rawValue) } ?? .null),
      .init("offset", offset.map { .count($0.bytes) } ?? .null),
      .init("length", .count(length)),
      .init("guest_offset", guest.map { .count($0.bytes) } ?? .null),
      .init("errno", errno.map { .integer(Int64($0.code)) } ?? .null),
      .init("text", .string(text)),
    ])
  }
}
