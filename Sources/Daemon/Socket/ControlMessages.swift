import JSON
import Reports

/// What `qublk del` and `qublk stats` ask of a daemon, over /run/qublk/ID/control: one line a
/// connection.
package enum ControlRequest: String {
  /// Whether the device could be stopped: answered by ``ControlReply/done`` or a refusal.
  case check
  case stop
  case stopForced = "stop --force"
  case stats
}

/// What the daemon answers, in one line; then the connection ends.
///
/// While the daemon works on a request, it sends ``waitLine`` every second.
package enum ControlReply: Equatable {
  static let waitLine = "wait"

  /// All is written, the device is gone.
  case done
  /// The device is gone: another request had it stopped.
  case gone
  /// Nothing has changed, for this reason.
  case refused(String)
  /// The device is gone, but something went wrong on the way: data may be lost.
  case failed(String)
  /// What ``ControlRequest/stats`` asks for: JSON in one line.
  case report(String)

  /// The line, without its newline.
  ///
  /// Messages have paths in them, and so any character.
  var line: String {
    switch self {
    case .done: "done"
    case .gone: "gone"
    case .refused(let text): "refused \(JSONValue.string(text).line)"
    case .failed(let text): "failed \(JSONValue.string(text).line)"
    case .report(let text): "report \(text)"
    }
  }

  init?(_ line: String) {
    func message(after word: String) -> String {
      let rest = String(line.dropFirst(word.count))
      return JSONParser.parse(rest)?.string ?? rest
    }
    if line == "done" {
      self = .done
    } else if line == "gone" {
      self = .gone
    } else if line.hasPrefix("refused ") {
      self = .refused(message(after: "refused "))
    } else if line.hasPrefix("failed ") {
      self = .failed(message(after: "failed "))
    } else if line.hasPrefix("report ") {
      self = .report(String(line.dropFirst("report ".count)))
    } else {
      return nil
    }
  }
}
