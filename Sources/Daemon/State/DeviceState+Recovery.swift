import JSON

extension DeviceState {
  /// What the state file of a device that outlives its daemon has beside the rest.
  package struct Recovery: Equatable {
    /// The version of ``request``; another one is not read.
    static let layout: Int64 = 1

    /// How far the device is from being served; the raw value stands in the file.
    package enum Phase: String {
      case serving
      /// The daemon has died, and a supervisor starts another.
      case recovering
      /// A new daemon is about to fetch, on a kernel that takes no third one if this one dies now.
      case fetching
      /// The daemon has died, and nothing starts another by itself.
      case quiesced
    }

    package var phase: Phase
    /// Why the device is not served, in words; nil where the phase says it all.
    package var reason: String?
    /// How the device is served: what ``AttachRequest/init(stored:)`` reads.
    var request: JSONValue
  }
}

extension DeviceState.Recovery {
  var json: JSONValue {
    .object([
      .init("layout", .integer(Self.layout)),
      .init("phase", .string(phase.rawValue)),
      .init("reason", reason.map { .string($0) } ?? .null),
      .init("request", request),
    ])
  }

  /// Reads what ``json`` wrote; nil if anything is missing or of another layout.
  init?(_ json: JSONValue) {
    guard json["layout"]?.integer == Self.layout,
      let phase = json["phase"]?.string.flatMap(Phase.init),
      let request = json["request"], request.members != nil
    else { return nil }
    self.init(phase: phase, reason: json["reason"]?.string, request: request)
  }
}
