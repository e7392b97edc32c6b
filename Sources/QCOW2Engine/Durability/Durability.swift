import BlockCore
import Synchronization

/// When what requests have changed becomes durable: by a flush of the guest's, or by age.
final class Durability: Sendable {
  let flusher: FlushCoordinator
  let health: ImageHealth
  let headerEditor: HeaderEditor
  /// When the oldest change not yet written back was made, in milliseconds; 0 when there is none.
  private let dirtySince = Atomic<UInt64>(0)
  private let mostAge: UInt64
  private let isReadOnly: Bool

  init(_ parts: ImageParts, _ flusher: FlushCoordinator) {
    self.flusher = flusher
    health = parts.storage.health
    headerEditor = parts.headerEditor
    mostAge = UInt64(parts.options.dirtyAgeMilliseconds)
    isReadOnly = parts.options.readOnly
  }

  /// Makes durable every change that completed before the call.
  @inline(__always) func flush() async throws(ImageError) {
    if isReadOnly { return }
    YieldPoint.flush.pass()
    dirtySince.store(0, ordering: .relaxed)
    do { try await flusher.flushLazily() } catch {
      // Still dirty: the background round must try again.
      noteDirty()
      throw error
    }
    health.noteSpaceFound(by: .flush)
  }

  /// Notes that some table in memory is ahead of the host file.
  func noteDirty() {
    YieldPoint.flush.pass()
    if dirtySince.load(ordering: .relaxed) == 0 {
      YieldPoint.flush.pass()
      dirtySince.store(MonotonicClock.coarseMilliseconds(), ordering: .relaxed)
    }
  }

  /// How long the oldest change has waited, in milliseconds; 0 when there is none.
  var dirtyMilliseconds: UInt64 {
    let since = dirtySince.load(ordering: .relaxed)
    let now = MonotonicClock.coarseMilliseconds()
    return since == 0 || since > now ? 0 : now - since
  }

  /// Whether some change has waited for as long as it may.
  var isOverdue: Bool {
    let since = dirtySince.load(ordering: .relaxed)
    return since != 0 && MonotonicClock.coarseMilliseconds() &- since >= mostAge
  }

  /// Clears the DIRTY bit of lazy refcounts, if the image has been quiet for long enough.
  func cleanIfWorthwhile() async {
    guard dirtySince.load(ordering: .relaxed) == 0,
      flusher.lazy.isWorthClearing(
        rounds: flusher.rounds.load(ordering: .relaxed), now: MonotonicClock.coarseMilliseconds())
    else { return }
    try? await flusher.clean()
  }
}
