package import ImageJobs
package import JSON

/// What a daemon sends to a client: any number of events, then a result or an error.
///
/// Then the connection ends.
package enum ControlMessage: Equatable, Sendable {
  /// The request is still being worked on.
  case wait
  /// The same of a job.
  case progress(JobProgress.Snapshot)
  /// What a job tells meanwhile.
  case told(JobMessage)
  /// What a job hands out meanwhile.
  case items([JSONValue])
  case result(JSONValue)
  case error(ControlError)

  /// Success, of which there is nothing to say.
  static let done = ControlMessage.result(.object([]))
  /// Another request had the device stopped.
  static let gone = ControlMessage.error(ControlError(.gone, "the device is gone"))

  /// The message, without its newline.
  var line: String { JSONValue.object(members).line }

  private var members: [JSONValue.Member] {
    func event(_ name: String, _ rest: JSONValue.Member...) -> [JSONValue.Member] {
      [.init("event", .string(name))] + rest
    }
    switch self {
    case .wait: return event("wait")
    case .progress(let progress):
      return event(
        "progress", .init("done", .number(progress.done)), .init("total", .number(progress.total)),
        .init("unit", .string(progress.unit.rawValue)))
    case .told(.note(let text)): return event("note", .init("text", .string(text)))
    case .told(.output(let text)): return event("output", .init("text", .string(text)))
    case .items(let items): return event("items", .init("items", .array(items)))
    case .result(let value): return [.init("result", value)]
    case .error(let error):
      return [
        .init(
          "error",
          .object([
            .init("kind", .string(error.kind.rawValue)), .init("text", .string(error.text)),
          ]))
      ]
    }
  }
}

extension ControlMessage {
  /// Reads a message; nil for what is none of this version.
  ///
  /// - Parameter bytes: The line, without its newline.
  init?(parsing bytes: some Collection<UInt8>) {
    guard let message = JSONParser.parse(Array(bytes)) else { return nil }
    if let result = message["result"] {
      self = .result(result)
    } else if let error = message["error"], let text = error["text"]?.string,
      let kind = error["kind"]?.string
    {
      self = .error(ControlError(ControlError.Kind(rawValue: kind) ?? .other, text))
    } else {
      self.init(event: message)
    }
  }

  private init?(event message: JSONValue) {
    switch message["event"]?.string {
    case "wait": self = .wait
    case "progress":
      guard let done = message["done"]?.unsigned, let total = message["total"]?.unsigned,
        let unit = message["unit"]?.string.flatMap(JobProgress.Unit.init)
      else { return nil }
      self = .progress(.init(done: done, total: total, unit: unit))
    case "note", "output":
      guard let text = message["text"]?.string else { return nil }
      self = .told(message["event"] == .string("note") ? .note(text) : .output(text))
    case "items":
      guard let items = message["items"]?.array else { return nil }
      self = .items(items)
    // A later daemon of this version may have more events: it is still at work.
    case .some: self = .wait
    case nil: return nil
    }
  }
}
