import ImageJobs
package import JSON

/// What a command asks of a daemon: the first message of a client, a JSON object in one line.
///
/// The client of a job may send a second one: ``cancellation``.
///
/// docs/control-protocol.md describes all messages.
package enum ControlRequest: Equatable, Sendable {
  /// The version of the protocol that this program speaks; another one is refused by name.
  package static let version: Int64 = 1

  /// Whether, and in what manner, the device shall end.
  package enum Stop: Equatable, Sendable {
    /// Only says whether the device could be stopped.
    case check
    /// Unless somebody uses it.
    case ifUnused
    /// In spite of its users.
    case forced
  }

  case stop(Stop)
  case stats
  /// The jobs that run.
  case jobs
  /// A job on the image, by its name, with its arguments.
  case job(String, JSONValue?)

  /// Reads a message.
  ///
  /// The version is looked at before anything else: the rest may be of a protocol that is not known here.
  ///
  /// - Parameter bytes: The line, without its newline.
  /// - Throws: What is wrong with it, as the client is told.
  init(parsing bytes: some Collection<UInt8>) throws(ControlError) {
    guard let message = JSONParser.parse(Array(bytes)), message.members != nil else {
      throw ControlError(.malformed, "a request is a JSON object in one line")
    }
    guard message["version"] == .integer(Self.version) else { throw .version(message["version"]) }
    guard let name = message["request"]?.string else {
      throw ControlError(.malformed, "\"request\" is missing, or no text")
    }
    do throws(JobError) { self = try Self.named(name, message["arguments"]) } catch {
      throw ControlError(.arguments, "\(name): \(error.message)")
    }
    if case .job(name, _) = self, !LiveHost.knows(name) {
      throw ControlError(.unknownRequest, "unknown request \"\(name)\"")
    }
  }

  private static func named(_ name: String, _ value: JSONValue?) throws(JobError) -> Self {
    var arguments = try JobArguments(value)
    let request: Self
    switch name {
    case "stats": request = .stats
    case "jobs": request = .jobs
    case "can-stop": request = .stop(.check)
    case "stop": request = .stop(try arguments.bool("force") == true ? .forced : .ifUnused)
    // A job's arguments are its own.
    default: return .job(name, value)
    }
    try arguments.finish()
    return request
  }

  /// What the client of a job sends behind its request, without a newline, when the job is not wanted any more.
  static var cancellation: String {
    JSONValue.object([.init("version", .integer(version)), .init("request", .string("cancel"))])
      .line
  }

  /// Whether a line behind a request is that.
  static func cancels(_ bytes: some Collection<UInt8>) -> Bool {
    let message = JSONParser.parse(Array(bytes))
    return message?["version"] == .integer(version) && message?["request"] == .string("cancel")
  }

  /// The message, without its newline.
  var line: String {
    var members: [JSONValue.Member] = [
      .init("version", .integer(Self.version)), .init("request", .string(name)),
    ]
    switch self {
    case .stop(.forced):
      members.append(.init("arguments", .object([.init("force", .bool(true))])))
    case .job(_, let arguments?): members.append(.init("arguments", arguments))
    case .stop, .stats, .jobs, .job: break
    }
    return JSONValue.object(members).line
  }

  private var name: String {
    switch self {
    case .stop(.check): "can-stop"
    case .stop: "stop"
    case .stats: "stats"
    case .jobs: "jobs"
    case .job(let name, _): name
    }
  }
}
