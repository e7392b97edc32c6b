import ArgumentParser
import BlockCore
import Daemon
import Glibc
import HostFiles
import JSON
import QCOW2Tools
import Reports

/// `qublk list`: every ublk device there is.
struct ListCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "list", abstract: "List devices.",
    discussion: """
      States: live. In place of live, if something went wrong: io-errors (the host could not read or \
      write something), no-space (the host is full), damaged (the image breaks the format and is no \
      longer changed), sync-failed (written data may be lost, and nothing more is written); "qublk \
      stats" and the log say more. stopped (a signal has stopped the daemon; kill -CONT lets it go on). \
      dead or fail-io (the daemon is gone, requests fail). recovering (the daemon has died, requests \
      wait until its supervisor has started another). quiesced (the daemon is gone, requests wait for \
      "qublk recover"; the reason is below the table). stale (only files in /run/qublk are left). \
      "qublk del" removes devices in each of these states. A device of another program has no image, nor has a device of qublk whose files in \
      /run/qublk are lost; "qublk del" removes the latter all the same.
      """,
    aliases: ["ls"])

  @Flag(help: "Print a JSON array.")
  var json = false

  func run() throws {
    let devices = try DeviceList.read()
    let text = json ? JSONValue.array(devices.map(\.json)).text + "\n" : Self.table(devices)
    guard writeAll(STDOUT_FILENO, text) else { throw CommandError.output(Errno(errno)) }
  }

  /// Columns as wide as their widest text; nothing at all for no devices.
  static func table(_ devices: [ListedDevice]) -> String {
    guard !devices.isEmpty else { return "" }
    let rows = [["ID", "DEVICE", "STATE", "SIZE", "QUEUES", "PID", "IMAGE"]] + devices.map(\.row)
    let widths = rows[0].indices.map { column in rows.map { $0[column].count }.max() ?? 0 }
    return rows.map { row in
      let cells = zip(row, widths).map { text, width in
        text + String(repeating: " ", count: width - text.count)
      }
      return cells.joined(separator: "  ").trimmingEnd() + "\n"
    }.joined() + devices.map(\.waitLine).joined()
  }
}

extension ListedDevice {
  /// A line below the table for a device whose requests wait.
  fileprivate var waitLine: String {
    waitReason.map { "\(name.path): \(state.rawValue): \(printable($0))\n" } ?? ""
  }

  fileprivate var row: [String] {
    let shape = queues.flatMap { queues in depth.map { "\(queues)x\($0)" } }
    return [
      String(name.id), name.path, stateText, size.map(SizeText.short) ?? "-", shape ?? "-",
      process.map { String($0) } ?? "-", qublk.map { printable($0.image) } ?? "-",
    ]
  }

  fileprivate var json: JSONValue {
    .object([
      .init("id", .integer(Int64(name.id))),
      .init("device", .string(name.path)),
      .init("state", .string(state.rawValue)),
      .init("size", Self.number(size)),
      .init("image", qublk.map { .string($0.image) } ?? .null),
      .init("read-only", qublk.map { .bool($0.isReadOnly) } ?? .null),
      .init("queues", Self.number(queues)),
      .init("depth", Self.number(depth)),
      .init("pid", Self.number(process)),
      .init("version", qublk.map { .string($0.version) } ?? .null),
      .init("started", Self.number(qublk?.started)),
      .init(
        "condition", state == .live ? qublk.map { .string($0.condition.rawValue) } ?? .null : .null),
      .init("sandbox", (qublk?.sandbox).map { .array($0.map(JSONValue.string)) } ?? .null),
      .init("trouble", qublk?.trouble.map { .string($0) } ?? .null),
      .init("recovery", qublk.map { .bool($0.recovery != nil) } ?? .null),
      .init("supervisor", Self.number(qublk?.supervisor)),
      .init("reason", waitReason.map { .string($0) } ?? .null),
    ])
  }

  private static func number(_ value: (some BinaryInteger)?) -> JSONValue {
    value.map { .integer(Int64(clamping: $0)) } ?? .null
  }
}

extension String {
  fileprivate func trimmingEnd() -> String {
    String(self[..<(lastIndex { $0 != " " }.map { index(after: $0) } ?? startIndex)])
  }
}
