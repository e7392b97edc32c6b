import BlockCore
import Synchronization

/// The DIRTY bit of an image with lazy refcounts (docs/design.md, section 4, rule 10).
///
/// While it is set, flush rounds leave refcounts in memory: whoever opens the image after a crash
/// rebuilds them from the tables. It is durable before the first round that leaves them out writes
/// a table, and goes after a round that wrote them all. Only the running round changes it, so no
/// other round falls between that and the clearing.
final class LazyRefcounts: Sendable {
  /// How long nothing may have been written before the bit is worth clearing.
  static let idleMilliseconds: UInt64 = 1000

  private let editor: HeaderEditor
  private let on: Atomic<Bool>
  private let marked = Atomic<Bool>(false)
  /// How many operations need the bit to stay, whatever the rounds write; see ``RefcountDoubt``.
  private let holds = Atomic<Int>(0)
  /// Rounds that were completed when the image was last looked at, and when they had changed.
  private let seenRounds = Atomic<UInt64>(0)
  private let seenAt = Atomic<UInt64>(0)

  init(editor: HeaderEditor, isOn: Bool) {
    self.editor = editor
    on = Atomic(isOn)
  }

  /// Whether rounds may leave refcounts in memory; else nothing here sets the bit.
  var isOn: Bool {
    YieldPoint.lazy.pass()
    return on.load(ordering: .acquiring)
  }

  /// Changes that for all rounds that begin from now on; call with ``Image/snapshotting`` held, so that no
  /// ``RefcountDoubt`` lies in between.
  func turn(on isOn: Bool) { on.store(isOn, ordering: .releasing) }

  /// The bit is set in the header.
  var isMarked: Bool {
    YieldPoint.lazy.pass()
    return marked.load(ordering: .acquiring)
  }

  /// Sets the bit, durably; all that was written to the image file before is durable then, too.
  func mark() async throws(ImageError) {
    try await editor.setDirty(true)
    YieldPoint.lazy.pass()
    marked.store(true, ordering: .releasing)
  }

  /// Keeps the bit set, once it is, until ``endHold()``.
  ///
  /// A round that is under way may still clear it.
  func hold() {
    YieldPoint.lazy.pass()
    holds.wrappingAdd(1, ordering: .sequentiallyConsistent)
  }

  /// How many operations need the bit to stay, those that have failed half-way included.
  var holdCount: Int {
    YieldPoint.lazy.pass()
    return holds.load(ordering: .sequentiallyConsistent)
  }

  func endHold() { holds.wrappingSubtract(1, ordering: .sequentiallyConsistent) }

  /// Clears the bit, durably, after a round that wrote all refcounts; not while it is held.
  func clear() async throws(ImageError) {
    guard isMarked, holdCount == 0 else { return }
    try await editor.setDirty(false)
    YieldPoint.lazy.pass()
    marked.store(false, ordering: .releasing)
  }

  /// Whether the bit is set and no round has run for a while; call from time to time.
  ///
  /// Callers may race: then the answer comes a call too early or too late, which harms nothing.
  func isWorthClearing(rounds: UInt64, now: UInt64) -> Bool {
    guard isMarked else { return false }
    if seenRounds.exchange(rounds, ordering: .relaxed) != rounds {
      seenAt.store(now, ordering: .relaxed)
      return false
    }
    return now &- seenAt.load(ordering: .relaxed) >= Self.idleMilliseconds
  }
}
