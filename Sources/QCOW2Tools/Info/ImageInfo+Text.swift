import Glibc
import JSON

/// `info` for people: the text of qemu-img.
extension ImageInfoReport {
  /// The text, with line breaks.
  package var humanText: String {
    var lines = [
      "image: \(text("filename"))",
      "file format: \(text("format"))",
      "virtual size: \(SizeText.short(number("virtual-size"))) (\(number("virtual-size")) bytes)",
      "disk size: \(SizeText.short(number("actual-size")))",
    ]
    if json["encrypted"]?.bool == true { lines.append("encrypted: yes") }
    lines.append("cluster_size: \(number("cluster-size"))")
    if json["dirty-flag"]?.bool == true { lines.append("cleanly shut down: no") }
    lines += backingLines + snapshotLines
    return lines.joined(separator: "\n") + "\n" + specificText
  }

  /// The part of the text that is about the format, with line breaks.
  package var specificText: String {
    let members = json["format-specific"]?["data"]?.members ?? []
    let lines = members.flatMap { Self.lines($0.name, $0.value, indent: 1) }
    return "Format specific information:\n" + lines.joined(separator: "\n") + "\n"
  }

  private func text(_ name: String) -> String { json[name]?.string ?? "" }

  private func number(_ name: String) -> UInt64 { json[name]?.unsigned ?? 0 }

  private var backingLines: [String] {
    guard let file = json["backing-filename"]?.string else { return [] }
    let full = json["full-backing-filename"]?.string ?? file
    let name = "backing file: \(file)\(full == file ? "" : " (actual path: \(full))")"
    guard let format = json["backing-filename-format"]?.string else { return [name] }
    return [name, "backing file format: \(format)"]
  }

  private var snapshotLines: [String] {
    guard let snapshots = json["snapshots"]?.array, !snapshots.isEmpty else { return [] }
    let title = Self.row("ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT")
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
    left(id, 9) + " " + left(name, 16) + " " + right(size, 8) + right(date, 20)
      + right(clock, 13) + right(count, 11)
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
    let fields = [seconds / 3600, seconds / 60 % 60, seconds % 60].map { padded($0, 2) }
    return fields.joined(separator: ":") + "."
      + padded(nanoseconds / 1_000_000, 3)
  }

  private static func padded(_ value: UInt64, _ width: Int) -> String {
    let digits = String(value)
    return String(repeating: "0", count: max(0, width - digits.count)) + digits
  }

  /// A member of the format specific information: its value, or its members below it.
  private static func lines(_ name: String, _ value: JSONValue, indent: Int) -> [String] {
    let margin = String(repeating: "    ", count: indent)
    let title = "\(margin)\(name.replacing("-", with: " ")):"
    switch value {
    case .string(let text): return ["\(title) \(text)"]
    case .null, .integer, .unsigned, .fraction, .bool: return ["\(title) \(value.line)"]
    case .array(let values):
      return [title]
        + values.enumerated().flatMap { lines("[\($0)]", $1, indent: indent + 1) }
    case .object(let members):
      return [title] + members.flatMap { lines($0.name, $0.value, indent: indent + 1) }
    }
  }
}
