import Synchronization

/// What has gone wrong for good: such failures stick, and stop all writing.
final class ImageHealth: Sendable {
  private let flags = Atomic<UInt32>(0)
  private static let corrupt: UInt32 = 1
  private static let syncFailed: UInt32 = 2

  /// Nothing has gone wrong; one load, for the hit path.
  @inline(__always) var allowsWrites: Bool { flags.load(ordering: .relaxed) == 0 }

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

  /// Throws if writing has been stopped.
  func requireWrites() throws(ImageError) {
    if !allowsWrites { throw .writesStopped }
  }
}
