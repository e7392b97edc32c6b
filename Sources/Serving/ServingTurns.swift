/// Bounds how many requests of a queue the slow path serves at once, and with that their memory.
///
/// Requests beyond the limit wait in a list of slots, first come, first served.
@usableFromInline struct ServingTurns {
  @usableFromInline let limit: Int
  @usableFromInline var serving = 0
  @usableFromInline var first = -1
  @usableFromInline var last = -1
  /// Whether any request has ever to wait.
  @usableFromInline let areLimited: Bool

  /// - Parameters:
  ///   - limit: The most requests at once.
  ///   - slots: The number of slots.
  @usableFromInline init(limit: Int, slots: Int) {
    self.limit = limit
    areLimited = limit < slots
  }

  /// Whether a request may be served now.
  @inlinable var isFree: Bool { serving < limit }

  /// A request is served now.
  @inlinable mutating func begin() { serving += 1 }

  /// A request that was served has ended, or pauses.
  @inlinable mutating func end() { serving -= 1 }

  /// Adds a slot to those that wait.
  @inlinable mutating func wait(_ slot: Int, _ states: UnsafeMutablePointer<RequestState>) {
    unsafe states[slot].nextWaiting = -1
    if last < 0 {
      first = slot
    } else {
      unsafe states[last].nextWaiting = Int32(truncatingIfNeeded: slot)
    }
    last = slot
  }

  /// Takes the slot whose turn it is; nil if none waits, or there is no room.
  @inlinable mutating func next(_ states: UnsafeMutablePointer<RequestState>) -> Int? {
    guard isFree, first >= 0 else { return nil }
    let slot = first
    first = unsafe Int(states[slot].nextWaiting)
    if first < 0 { last = -1 }
    return slot
  }
}
