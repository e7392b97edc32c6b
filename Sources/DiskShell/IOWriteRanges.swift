/// The sectors that are being written.
///
/// A write of whole sectors shares them with others of its kind; one of part of a sector reads the
/// rest of it first, and must be alone until it has written that back. Used by one thread.
@safe
final class IOWriteRanges: @unchecked Sendable {  // why: confined to its loop's thread
  private struct Held {
    let id: Int
    let sectors: Range<UInt64>
    let isAlone: Bool
  }

  private var held: [Held] = []
  private var waiters: [UnsafeContinuation<Void, Never>] = unsafe []
  private var nextID = 0

  /// Waits until the bytes may be written.
  ///
  /// - Returns: what ``release(_:)`` takes.
  func acquire(_ sectors: Range<UInt64>, alone: Bool) async -> Int {
    while held.contains(where: { ($0.isAlone || alone) && $0.sectors.overlaps(sectors) }) {
      unsafe await withUnsafeContinuation { unsafe waiters.append($0) }
    }
    nextID += 1
    held.append(Held(id: nextID, sectors: sectors, isAlone: alone))
    return nextID
  }

  /// Gives the bytes free; everyone who waits looks again.
  func release(_ id: Int) {
    held.removeAll { $0.id == id }
    let woken = unsafe waiters
    unsafe waiters = unsafe []
    unsafe woken.forEach { unsafe $0.resume() }
  }
}
