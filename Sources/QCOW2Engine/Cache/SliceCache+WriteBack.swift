import BlockCore
import Synchronization

// What write-back asks of the cache; see ``WriteBackBatch``.

/// A dirty slice found by ``SliceCache/dirtyKeys()``.
struct DirtySlice: Sendable {
  let key: UInt64
  let stripe: Int32
  let slot: Int32
  /// Filled by ``SliceCache/copy(_:to:)``.
  var generation: UInt64 = 0
}

extension SliceCache {
  /// All slices that are dirty now, in order of host offset.
  func dirtyKeys() -> [DirtySlice] {
    // Never too low: a change counts before its lock is released, a write-back after.
    if dirtyCount == 0 { return [] }
    var found: [DirtySlice] = []
    found.reserveCapacity(dirtyCount)
    for number in 0..<stripes.count {
      let stripe = stripes[number]
      unsafe stripe.lock.pointee.withLock {
        guard unsafe stripe.state.pointee.dirtyCount > 0 else { return }
        for slot in unsafe 0..<stripe.state.pointee.slotCount
        where unsafe stripe.state.pointee.slots[slot].dirtyGeneration != 0 {
          let key = unsafe stripe.state.pointee.slots[slot].key
          found.append(DirtySlice(key: key, stripe: Int32(number), slot: Int32(slot)))
        }
      }
    }
    found.sort { $0.key < $1.key }
    return found
  }

  /// Copies a dirty slice to `target` and notes which generation the copy is.
  ///
  /// - Returns: whether the slice is held in the cache from now on, as `holds` asks for, if it can be.
  func copy(
    _ slice: inout DirtySlice, to target: UnsafeMutableRawPointer, holds: Bool
  ) -> Bool {
    let stripe = stripes[Int(slice.stripe)]
    let slot = Int(slice.slot)
    let (generation, isHeld) = unsafe stripe.lock.pointee.withLock {
      unsafe target.copyMemory(from: bytes(stripe, slot), byteCount: sliceSize)
      return unsafe (
        stripe.state.pointee.slots[slot].dirtyGeneration, stripe.state.pointee.hold(slot, holds)
      )
    }
    slice.generation = generation
    return isHeld
  }

  /// Marks a slice dirty that is held.
  func markDirty(_ key: HostOffset) {
    let isThere = changeResident(key) { $0.mark() }
    assert(isThere, "a held slice was evicted")
  }

  /// Ends the write-back of copied slices: clean, unless changed since.
  func markWritten(_ slices: ArraySlice<DirtySlice>) {
    for slice in slices {
      let stripe = stripes[Int(slice.stripe)]
      let (cleaned, waiters) = unsafe stripe.lock.pointee.withLock {
        let before = unsafe stripe.state.pointee.dirtyCount
        unsafe stripe.state.pointee.markWritten(
          Int(slice.slot), key: slice.key, generation: slice.generation)
        return unsafe (
          before != stripe.state.pointee.dirtyCount, stripe.state.pointee.waiters.takeAll()
        )
      }
      if cleaned { dirtySlices.wrappingSubtract(1, ordering: .relaxed) }
      unsafe waiters.forEach { unsafe $0.resume() }
    }
  }
}
