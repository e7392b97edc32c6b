import BlockCore
import Synchronization

/// What has gone wrong: for good, which stops all changes, or for want of space, which passes.
final class ImageHealth: Sendable {
  private let flags = Atomic<UInt32>(0)
  private static let corrupt: UInt32 = 1
  private static let syncFailed: UInt32 = 2
  private static let stopped = corrupt | syncFailed

  /// What lacked the host's space.
  enum SpaceUser: UInt32 {
    /// A request that needed new clusters.
    case allocation = 4
    /// A write into a cluster that the image has, and the host no storage for.
    case inPlace = 8
    case flush = 16

    static let all = allocation.rawValue | inPlace.rawValue | flush.rawValue
  }

  /// The way to the administrator; nil if there is none.
  let reporter: EventReporter?

  init(reporter: EventReporter? = nil) { self.reporter = reporter }

  /// Nothing is wrong; one load, for the hit path.
  ///
  /// While space is lacking, writes take the slow path, which sees when there is some again.
  @inline(__always) var isGood: Bool {
    YieldPoint.health.pass()
    return flags.load(ordering: .relaxed) == 0
  }

  /// Nothing is wrong for a write in place; one load, for the hit path.
  ///
  /// It needs no new cluster, and would not find out that there are some again.
  @inline(__always) var isGoodInPlace: Bool {
    YieldPoint.health.pass()
    return flags.load(ordering: .relaxed) & ~SpaceUser.allocation.rawValue == 0
  }

  /// Nothing has gone wrong for good.
  var allowsWrites: Bool {
    YieldPoint.health.pass()
    return flags.load(ordering: .relaxed) & Self.stopped == 0
  }

  /// Metadata was found that breaks the format.
  var isCorrupt: Bool { flags.load(ordering: .acquiring) & Self.corrupt != 0 }

  /// A barrier failed.
  var hasLostSync: Bool { flags.load(ordering: .acquiring) & Self.syncFailed != 0 }

  /// Notes corruption.
  ///
  /// Returns true the first time.
  func noteCorruption() -> Bool {
    flags.bitwiseOr(Self.corrupt, ordering: .acquiringAndReleasing).oldValue & Self.corrupt == 0
  }

  /// A failed fsync may have dropped data that later ones would call durable: never sync again.
  func noteSyncFailure() { flags.bitwiseOr(Self.syncFailed, ordering: .acquiringAndReleasing) }

  /// Throws if changes have been stopped.
  func requireWrites() throws(ImageError) {
    if !allowsWrites { throw .writesStopped }
  }

  /// Throws if what was changed can no longer be made durable.
  ///
  /// Corruption is no reason: it stops changes, and those made before it was found are as good as they
  /// would be without it.
  func requireWriteBack() throws(ImageError) {
    if hasLostSync { throw .writesStopped }
  }

  // MARK: Space

  /// Notes that something was done for which the host lacked space before, and tells the
  /// administrator of the end of the lack.
  @inline(__always) func noteSpaceFound(by user: SpaceUser) {
    if lacksSpace { endLack(of: user) }
  }

  @inline(never) private func endLack(of user: SpaceUser) {
    if noteSpace(foundBy: user) { reporter?.note(.spaceFound) }
  }

  /// Some request failed for want of space, and none like it has succeeded since.
  @inline(__always) var lacksSpace: Bool {
    flags.load(ordering: .relaxed) & SpaceUser.all != 0
  }

  func noteSpace(lackedBy user: SpaceUser) {
    flags.bitwiseOr(user.rawValue, ordering: .relaxed)
  }

  /// - Returns: Whether space was lacking until now, and no longer is.
  func noteSpace(foundBy user: SpaceUser) -> Bool {
    let old = flags.bitwiseAnd(~user.rawValue, ordering: .relaxed).oldValue
    return old & SpaceUser.all == user.rawValue
  }
}
