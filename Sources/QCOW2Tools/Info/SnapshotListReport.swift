import Glibc
package import JSON
package import QCOW2Format

/// The internal snapshots of an image, as `info` and `snapshot -l` tell them.
package struct SnapshotListReport: Equatable, Sendable {
  /// An array with an object for each, in the order of the table.
  package let json: JSONValue

  /// The snapshots of a table.
  package init(_ snapshots: [Snapshot]) { json = .array(snapshots.map(\.json)) }

  /// Takes an array of objects; nil for anything else.
  package init?(json: JSONValue) {
    guard let array = json.array, array.allSatisfy({ $0.members != nil }) else { return nil }
    self.json = json
  }

  /// The snapshots that have VM state.
  package var withVMState: SnapshotListReport {
    let found = json.array?.filter { ($0["vm-state-size"]?.unsigned ?? 0) > 0 }
    return SnapshotListReport(json: .array(found ?? [])) ?? SnapshotListReport([])
  }

  /// The lines of qemu-img's text; none if there are no snapshots.
  package var lines: [String] {
    guard let snapshots = json.array, !snapshots.isEmpty else { return [] }
    let title = Self.row("ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT")
    return ["Snapshot list:", title] + snapshots.map(Self.row)
  }

  private static func row(_ snapshot: JSONValue) -> String {
    func number(_ name: String) -> UInt64 { snapshot[name]?.unsigned ?? 0 }
    return row(
      snapshot["id"]?.string ?? "", snapshot["name"]?.string ?? "",
      SizeText.short(number("vm-state-size")), date(number("date-sec")),
      clock(number("vm-clock-sec"), number("vm-clock-nsec")),
      snapshot["icount"]?.unsigned.map { String($0) } ?? "")
  }

  private static func row(
    _ id: String, _ name: String, _ size: String, _ date: String, _ clock: String,
    _ count: String
  ) -> String {
    [
      left(id, 7), left(name, 16), right(size, 8), right(date, 19), right(clock, 15),
      right(count, 10),
    ]
    .joined(separator: " ")
  }

  /// Local time, as "2026-01-31 23:59:59".
  private static func date(_ seconds: UInt64) -> String {
    var time = time_t(clamping: seconds)
    var parts = unsafe tm()
    guard unsafe localtime_r(&time, &parts) != nil else { return "" }
    let day = unsafe [parts.tm_mon + 1, parts.tm_mday].map { padded(UInt64($0), 2) }
    let clock = unsafe [parts.tm_hour, parts.tm_min, parts.tm_sec].map { padded(UInt64($0), 2) }
    return unsafe "\(parts.tm_year + 1900)-" + day.joined(separator: "-") + " "
      + clock.joined(separator: ":")
  }

  /// Hours, minutes, seconds and milliseconds.
  private static func clock(_ seconds: UInt64, _ nanoseconds: UInt64) -> String {
    padded(seconds / 3600, 4) + ":" + padded(seconds / 60 % 60, 2) + ":" + padded(seconds % 60, 2)
      + "." + padded(nanoseconds / 1_000_000, 3)
  }

  private static func padded(_ value: UInt64, _ width: Int) -> String {
    let digits = String(value)
    return String(repeating: "0", count: max(0, width - digits.count)) + digits
  }
}

extension Snapshot {
  /// The object that stands for the snapshot in qemu-img's JSON.
  package var json: JSONValue {
    var members: [JSONValue.Member] = []
    if let count = entry.instructionCount { members.append(.init("icount", .number(count))) }
    members += [
      .init("vm-clock-nsec", .number(entry.guestClock % 1_000_000_000)),
      .init("name", .string(name)),
      .init("date-sec", .number(UInt64(entry.seconds))),
      .init("date-nsec", .number(UInt64(entry.nanoseconds))),
      .init("vm-clock-sec", .number(entry.guestClock / 1_000_000_000)),
      .init("id", .string(id)),
      .init("vm-state-size", .number(entry.vmStateSize)),
    ]
    return .object(members)
  }
}
