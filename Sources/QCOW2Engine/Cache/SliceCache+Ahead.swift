import BlockCore

// Loading ahead of use.

extension SliceCache {
  /// Where a slice stands, at some moment.
  func state(of key: HostOffset) -> SlotState {
    let hash = hash(key.bytes)
    return stripe(hash).withLock { stripe in
      let slot = stripe.find(key.bytes, hash: hash)
      return unsafe slot < 0 ? .empty : stripe.slots[slot].state
    }
  }

  /// The same, on the first use of a slice: one that was loaded ahead is then as any other, so only
  /// one caller is told that it was.
  func touch(_ key: HostOffset) -> SlotState {
    let hash = hash(key.bytes)
    return stripe(hash).withLock { stripe in
      let slot = stripe.find(key.bytes, hash: hash)
      if slot < 0 { return .empty }
      let state = unsafe stripe.slots[slot].state
      if state == .ahead { unsafe stripe.slots[slot].state = .resident }
      return state
    }
  }

  /// Loads a slice that someone will want; does nothing if it is there, being loaded, or has no room.
  ///
  /// A failed read leaves nothing behind.
  func loadAhead(_ key: HostOffset, storage: ImageStorage) async {
    guard let (slot, target) = claimAhead(key) else { return }
    do { try await storage.read(into: target, at: key) } catch { return abandon(key, slot) }
    let stripe = stripe(hash(key.bytes))
    let waiters = unsafe stripe.lock.pointee.withLock {
      unsafe stripe.state.pointee.slots[slot].state = .ahead
      return unsafe stripe.state.pointee.waiters.takeAll()
    }
    unsafe waiters.forEach { unsafe $0.resume() }
  }

  private func claimAhead(_ key: HostOffset) -> (slot: Int, target: DataBuffer)? {
    let hash = hash(key.bytes)
    let stripe = stripe(hash)
    let slot = stripe.withLock { state -> Int in
      guard state.find(key.bytes, hash: hash) < 0 else { return -1 }
      let used = state.usedCount
      let slot = state.claim(key.bytes, hash: hash, hashOf: self.hash)
      if slot < 0 { return -1 }
      unsafe state.slots[slot].isStream = true
      counters.noteLoad(hasEvicted: state.usedCount == used, isAhead: true)
      return slot
    }
    if slot < 0 { return nil }
    return unsafe (slot, DataBuffer(memory: bytes(stripe, slot), count: sliceSize))
  }
}
