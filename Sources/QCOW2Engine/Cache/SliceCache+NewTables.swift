import BlockCore

// Clusters that become tables.

extension SliceCache {
  /// Makes a slice resident whose bytes on the host file are known to be zeros, if there is room.
  func insertZeroes(_ key: HostOffset) {
    let hash = hash(key.bytes)
    let stripe = stripe(hash)
    unsafe stripe.lock.pointee.withLock {
      guard unsafe stripe.state.pointee.find(key.bytes, hash: hash) < 0 else { return }
      let used = unsafe stripe.state.pointee.usedCount
      let slot = unsafe stripe.state.pointee.claim(key.bytes, hash: hash, hashOf: self.hash)
      if slot < 0 { return }
      unsafe counters.noteInsertion(hasEvicted: stripe.state.pointee.usedCount == used)
      unsafe bytes(stripe, slot).initializeMemory(as: UInt8.self, repeating: 0, count: sliceSize)
      MetadataMemory.orderStores()
      unsafe stripe.state.pointee.slots[slot].state = .resident
    }
  }

  /// Forgets clean slices of a cluster that is about to become a table anew.
  ///
  /// - Returns: false if one of them is dirty or loading, which means that the cluster is in use.
  func drop(from start: HostOffset, length: UInt64) -> Bool {
    var key = start.bytes
    while key < start.bytes &+ length {
      let hash = hash(key)
      let stripe = stripe(hash)
      let dropped = unsafe stripe.lock.pointee.withLock { () -> Bool in
        let slot = unsafe stripe.state.pointee.find(key, hash: hash)
        if slot < 0 { return true }
        guard unsafe stripe.state.pointee.slots[slot].state != .loading,
          unsafe stripe.state.pointee.slots[slot].dirtyGeneration == 0
        else { return false }
        unsafe stripe.state.pointee.remove(slot, hashOf: self.hash)
        counters.noteRemoval()
        return true
      }
      if !dropped { return false }
      key &+= UInt64(sliceSize)
    }
    return true
  }
}
