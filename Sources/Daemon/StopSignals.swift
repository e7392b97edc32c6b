import BlockCore
import CPlatform
import Glibc

/// What SIGTERM, SIGINT and SIGHUP mean to a daemon.
///
/// None of them ends a device in use: a file system on it would lose what it has not written
/// [UBLK-25]. After SIGTERM or SIGINT the device is served until its last user leaves. SIGHUP says that a
/// terminal or a login has ended, which is no reason for a device in use to end. systemd sends SIGTERM
/// and SIGHUP together when it ends a scope, so only the same signal again, some time later, insists.
///
/// Process 1 never insists: systemd repeats SIGTERM when a unit's time to stop is over, and again at
/// the end of a shutdown. Nor does a signal of another day: it counts as a first one.
struct StopSignals {
  /// The seconds after which the same signal insists.
  static let patience = 5.0
  /// The seconds after which a signal is forgotten.
  static let memory = 60.0

  enum Answer: Equatable {
    /// Stop the device if nobody uses it; if someone does, ask ``noteInUse(_:at:)``.
    case stopIfUnused
    /// Stop the device in spite of its users.
    case insist
    case ignore
  }

  /// The first signal that found the device in use, and when it came; nil while none has.
  private(set) var leaving: (signal: Int32, since: Double)?

  /// What to do about a signal that came at a moment, in seconds of any clock.
  ///
  /// With `isFromInit`, process 1 sent it.
  func answer(_ signal: Int32, at time: Double, isFromInit: Bool = false) -> Answer {
    guard let leaving, time - leaving.since < Self.memory else { return .stopIfUnused }
    guard signal == leaving.signal, !isFromInit, time - leaving.since >= Self.patience else {
      return .ignore
    }
    return .insist
  }

  /// Notes that a signal has found the device in use.
  mutating func noteInUse(_ signal: Int32, at time: Double) {
    guard signal != SIGHUP else { return }
    if let leaving, time - leaving.since < Self.memory { return }
    leaving = (signal, time)
  }

  /// What the log says of a signal that has found the device in use.
  static func text(_ signal: Int32, isFromInit: Bool) -> String {
    let name =
      unsafe qublk_signal_name(signal).map { unsafe "SIG\(String(cString: $0))" } ?? "\(signal)"
    if signal == SIGHUP { return "\(name) does not end it" }
    if isFromInit { return "serving until that ends" }
    return "serving until that ends; \(name) again after \(Int(patience)) seconds insists"
  }

  static var now: Double { Double(MonotonicClock.nanoseconds()) / 1e9 }
}
