import BlockCore

/// Who is changing the mapping of which guest clusters: writes that allocate, discards, zeroing.
///
/// A request holds its range from before it reads the old mapping until the new one is published;
/// one that overlaps waits, then looks at the mapping from scratch. A range never spans two groups
/// of `2^groupBits` indexes, so one stripe decides. Release is in a scope exit: errors wake, too.
final class InFlightRanges: @unchecked Sendable {  // why: each stripe's lock guards its lists
  private struct Stripe: ~Copyable {
    var held: [Range<UInt64>] = []
    var waiters = WaitList()
  }

  private static let stripeCount = 64
  private let stripes: LockedStripes<Stripe>
  private let groupBits: UInt64

  /// - Parameter groupBits: log2 of the indexes in a group: the entries of an L2 slice.
  init(groupBits: Int) {
    self.groupBits = UInt64(groupBits)
    stripes = LockedStripes(count: Self.stripeCount, rank: .inFlight) { _ in Stripe() }
  }

  deinit { stripes.deallocate() }

  private func stripe(_ range: Range<UInt64>) -> LockedStripe<Stripe> {
    assert(range.lowerBound >> groupBits == (range.upperBound - 1) >> groupBits)
    return stripes[Int((range.lowerBound >> groupBits) % UInt64(Self.stripeCount))]
  }

  /// Takes the range, suspending while any overlapping one is held.
  func acquire(_ range: Range<UInt64>) async {
    let stripe = stripe(range)
    while true {
      let blockedAt = stripe.withLock { state -> UInt64? in
        if state.held.contains(where: { $0.overlaps(range) }) {
          return state.waiters.version
        }
        state.held.append(range)
        return nil
      }
      guard let blockedAt else { return }
      unsafe await withUnsafeContinuation { continuation in
        let waits = stripe.withLock {
          unsafe $0.waiters.add(continuation, ifStill: blockedAt)
        }
        if !waits { unsafe continuation.resume() }
      }
    }
  }

  /// Gives the range back and wakes everyone who waits in its stripe.
  func release(_ range: Range<UInt64>) {
    let stripe = stripe(range)
    let waiters = unsafe stripe.withLock { state in
      if let index = state.held.firstIndex(of: range) {
        state.held.swapAt(index, state.held.count - 1)
        state.held.removeLast()
      }
      return unsafe state.waiters.takeAll()
    }
    unsafe waiters.forEach { unsafe $0.resume() }
  }
}
