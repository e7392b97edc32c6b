/// Whether, and when, a supervisor starts the next server.
///
/// A server that served for a while dies for a reason of its own time, so the next one starts at once. One
/// that dies soon, or does not get to serve, is likely to do so again: starts are further apart each time,
/// and after ``limit`` of them in a row the device is left to a person.
struct RestartPolicy {
  /// The deaths in a row, each soon after the start, after which no server is started.
  static let limit = 6
  /// The seconds of service after which a death is the first one again.
  static let lasting = 2.0
  /// The deaths by the sandbox after which no server is started, however long they are apart: what led a server
  /// astray lies in the image or with a client, and may try again.
  static let breachLimit = 2
  /// The longest pause before a start, in milliseconds.
  static let longestPause = 5000

  enum Decision: Equatable {
    case start(afterMilliseconds: Int)
    case giveUp(Cause)
  }

  enum Cause: Equatable {
    /// It died at the one moment after which the kernel takes no other server.
    case lastChance
    /// No other server could do better.
    case final
    case tooOften
    /// The sandbox has killed ``breachLimit`` servers.
    case breaches
  }

  private(set) var soonDeaths = 0
  private(set) var breaches = 0

  /// Decides after a death.
  ///
  /// - Parameters:
  ///   - served: The seconds for which the dead server served; nil if it did not get so far.
  ///   - phase: What the state file says.
  ///   - isFinal: The server said that no other one could do better.
  ///   - isBreach: The sandbox has killed it (SIGSYS).
  /// - Returns: What the supervisor does.
  mutating func serverDied(
    served: Double?, phase: DeviceState.Recovery.Phase?, isFinal: Bool,
    isBreach: Bool = false
  ) -> Decision {
    if served == nil, phase == .fetching { return .giveUp(.lastChance) }
    if served == nil, isFinal { return .giveUp(.final) }
    if isBreach { breaches += 1 }
    if breaches >= Self.breachLimit { return .giveUp(.breaches) }
    soonDeaths = (served ?? 0) < Self.lasting ? soonDeaths + 1 : 0
    if soonDeaths >= Self.limit { return .giveUp(.tooOften) }
    guard soonDeaths > 1 else { return .start(afterMilliseconds: 0) }
    return .start(afterMilliseconds: min(100 << (soonDeaths - 2), Self.longestPause))
  }
}
