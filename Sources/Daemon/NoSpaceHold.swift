import Synchronization
import Uring

/// What becomes of a request for which the host has no space: `--on-enospc`.
package enum NoSpacePolicy: Equatable {
  /// The guest gets ENOSPC at once.
  case fail
  /// The request is tried again until there is space, or the seconds have passed.
  case hold(seconds: Int?)
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
