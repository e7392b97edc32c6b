import ArgumentParser
import Glibc
import Synchronization
import Uring

/// What becomes of a request for which the host has no space: `--on-enospc`.
enum NoSpacePolicy: ExpressibleByArgument, Equatable {
  /// The guest gets ENOSPC at once.
  case fail
  /// The request is tried again until there is space, or the seconds have passed.
  case hold(seconds: Int?)

  static let secondsLimit = 1_000_000

  init?(argument: String) {
    switch argument {
    case "fail": self = .fail
    case "hold": self = .hold(seconds: nil)
    default:
      guard argument.hasPrefix("hold:"), let seconds = Int(argument.dropFirst(5)),
        (1...Self.secondsLimit).contains(seconds)
      else { return nil }
      self = .hold(seconds: seconds)
    }
  }

  var defaultValueDescription: String {
    switch self {
    case .fail: "fail"
    case .hold(nil): "hold"
    case .hold(let seconds?): "hold:\(seconds)"
    }
  }
}

/// Holds requests that failed for want of space, for all workers of a device.
///
/// Each is served again every 250 ms. The end of the device releases them: the driver waits for
/// every request before it lets go.
final class NoSpaceHold: Sendable {
  private static let interval = 250
  private let limit: Int?
  private let isReleased = Atomic<Bool>(false)

  /// Nil if requests are not to be held.
  init?(_ policy: NoSpacePolicy) {
    guard case .hold(let seconds) = policy else { return nil }
    limit = seconds.map { $0 * 1000 / Self.interval }
  }

  /// Lets the requests that are held, and later ones, fail: call before the device is stopped.
  func release() { isReleased.store(true, ordering: .relaxed) }

  /// Holds requests again, for a device that serves on.
  func resume() { isReleased.store(false, ordering: .relaxed) }

  /// Waits a little; false if the request is to fail.
  @Sendable func retry(_ attempt: Int) async -> Bool {
    if isReleased.load(ordering: .relaxed) { return false }
    if let limit, attempt >= limit { return false }
    guard let loop = WorkerLoop.current else { return false }
    return await loop.sleep(milliseconds: Self.interval)
  }
}
