import BlockCore
import CPlatform
import Glibc
import Synchronization
import Uring

/// One attempt to stop a device, on a thread of its own: it may take as long as the host takes for what
/// is to be written, and the control thread answers clients meanwhile.
final class DeviceStop: Sendable {
  enum Manner: Equatable {
    /// Only says whether the device is used.
    case check
    /// Unless somebody uses it.
    case ifUnused
    /// As soon as nobody uses it.
    case whenUnused
    /// In spite of its users.
    case forced
  }

  enum Outcome {
    /// Nobody uses the device, which serves on.
    case unused
    /// The device serves on, for these reasons.
    case serving([CommandError])
    /// The device is gone; what went wrong on the way.
    case ended([CommandError])
  }

  /// How far an attempt has come; it leaves the search once, for one of the others.
  private enum Phase {
    static let searching: UInt8 = 0
    static let stopping: UInt8 = 1
    static let abandoned: UInt8 = 2
  }

  let manner: Manner
  /// Becomes readable at the end.
  let descriptor: Int32
  private let isCancelled = Atomic(false)
  private let phase = Atomic(Phase.searching)
  private let result = Mutex<Outcome?>(nil)

  /// Starts `body`, which asks ``isWanted`` every now and then.
  init(_ manner: Manner, _ body: @escaping @Sendable (DeviceStop) -> Outcome) {
    self.manner = manner
    descriptor = qublk_eventfd()
    do throws(Errno) {
      if descriptor < 0 { throw Errno(-descriptor) }
      try WorkerThread(name: "qublk-stop", stackBytes: 4 << 20) { [self] in finish(body(self)) }
        .detach()
    } catch {
      // No thread, or nothing to wait for its end with: the clients wait, the device does not. Users
      // are not waited for here.
      cancel()
      finish(body(self))
    }
  }

  deinit { if descriptor >= 0 { close(descriptor) } }

  /// What came of it; nil before the end.
  var outcome: Outcome? { result.withLock { $0 } }

  /// False once another manner is asked for.
  var isWanted: Bool { !isCancelled.load(ordering: .relaxed) }

  /// The search for users is over: from now on the attempt goes on to its end.
  ///
  /// - Returns: false if it was abandoned meanwhile, and must do nothing more.
  func beginStop() -> Bool { leaveSearch(for: Phase.stopping) }

  /// Gives up an attempt that still searches for users, which may hang as long as a file system that it
  /// meets.
  ///
  /// - Returns: false if the search is over.
  func abandon() -> Bool { leaveSearch(for: Phase.abandoned) }

  private func leaveSearch(for next: UInt8) -> Bool {
    phase.compareExchange(
      expected: Phase.searching, desired: next, ordering: .acquiringAndReleasing
    ).exchanged
  }

  /// Ends the wait for users; an attempt that has begun to stop the device goes on.
  func cancel() { isCancelled.store(true, ordering: .relaxed) }

  private func finish(_ outcome: Outcome) {
    result.withLock { $0 = outcome }
    var one: UInt64 = 1
    if descriptor >= 0 { _ = unsafe write(descriptor, &one, 8) }
  }
}
