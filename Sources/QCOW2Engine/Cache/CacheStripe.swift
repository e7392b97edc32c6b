import BlockCore
import Glibc

/// Where a slot of the cache stands.
///
/// Life cycle: empty → loading → (ahead →) clean ⇄ dirty → empty.
enum SlotState: UInt8, BitwiseCopyable {
  case empty, loading, resident
  /// Loaded ahead of its first use, and clean: the hit path does not know it, so that the slow path
  /// sees the stream arrive there, once for each slice.
  case ahead
}

/// The bookkeeping of one cached slice; its bytes lie in the cache's arena at the slot's number.
///
/// All zero bytes are an empty slot.
struct CacheSlot: BitwiseCopyable {
  /// The host offset of the slice; valid unless empty.
  var key: UInt64 = 0
  var state: SlotState = .empty
  /// Second chance: set by each use, cleared by the clock hand.
  var isReferenced = false
  /// Loaded ahead for a stream, which will not come back: no second chance, so that a scan of the
  /// disk takes no room from what is used again and again.
  var isStream = false
  /// Never evicted: the host file has less than the slice; see ``ReservationMask``.
  var isHeld = false
  /// 0 when clean; else the number of the change that dirtied it last.
  var dirtyGeneration: UInt64 = 0
}

/// The slots and index that one lock guards.
///
/// The index is open-addressed with linear probing and backward-shift deletion, and holds slot
/// numbers plus one. Nothing here allocates after `init`.
@safe
struct CacheStripe: ~Copyable {
  /// The bytes of the stripe's slots.
  private let memory: UnsafeMutableRawPointer
  private let sliceSize: Int
  let slotCount: Int
  let slots: UnsafeMutablePointer<CacheSlot>
  private let index: UnsafeMutablePointer<UInt32>
  private let indexMask: Int
  private var hand = 0
  private var generation: UInt64 = 0
  private(set) var dirtyCount = 0
  /// Slots that are not empty.
  private(set) var usedCount = 0
  /// How often a slot was claimed, for whatever slice: while it stays, no slice has come in.
  private(set) var claimCount: UInt64 = 0
  private var heldCount = 0
  var waiters = WaitList()

  /// - Parameters:
  ///   - memory: `slotCount` times `sliceSize` bytes, which outlive the stripe.
  ///   - sliceSize: the bytes of a slice.
  ///   - slotCount: the number of slots.
  /// - Throws: ``ImageError/noMemory(bytes:)``.
  init(memory: UnsafeMutableRawPointer, sliceSize: Int, slotCount: Int) throws(ImageError) {
    var size = 4
    while size < slotCount * 2 { size *= 2 }
    let slots: UnsafeMutablePointer<CacheSlot> = try unsafe ZeroedMemory.allocate(slotCount)
    do throws(ImageError) {
      unsafe index = try unsafe ZeroedMemory.allocate(size)
    } catch {
      unsafe free(slots)
      throw error
    }
    unsafe self.slots = unsafe slots
    unsafe self.memory = unsafe memory
    self.sliceSize = sliceSize
    self.slotCount = slotCount
    indexMask = size - 1
  }

  deinit {
    unsafe free(slots)
    unsafe free(index)
  }

  /// The slice in a slot, valid while the slot keeps its key.
  @inline(__always) func bytes(_ slot: Int) -> UnsafeMutableRawPointer {
    unsafe memory + slot &* sliceSize
  }

  /// The slot that holds `key`, loading or resident; -1 if there is none.
  @inline(__always) func find(_ key: UInt64, hash: UInt64) -> Int {
    var position = Int(truncatingIfNeeded: hash) & indexMask
    while true {
      let entry = unsafe index[position]
      if entry == 0 { return -1 }
      if unsafe slots[Int(entry) &- 1].key == key { return Int(entry) &- 1 }
      position = (position &+ 1) & indexMask
    }
  }

  /// Takes an empty slot, or a clean one by second chance, for `key`; -1 if all are dirty or loading.
  ///
  /// The second chance is for slices that were used again since they were loaded.
  mutating func claim(_ key: UInt64, hash: UInt64, hashOf: (UInt64) -> UInt64) -> Int {
    var steps = slotCount * 2
    while steps > 0 {
      let slot = hand
      hand = hand + 1 == slotCount ? 0 : hand + 1
      steps -= 1
      switch unsafe slots[slot].state {
      case .loading: continue
      case .empty: break
      case .resident, .ahead:
        if unsafe slots[slot].dirtyGeneration != 0 || slots[slot].isHeld { continue }
        if unsafe slots[slot].isReferenced, unsafe !slots[slot].isStream {
          unsafe slots[slot].isReferenced = false
          continue
        }
        remove(slot, hashOf: hashOf)
      }
      unsafe slots[slot] = CacheSlot(key: key, state: .loading)
      insert(slot, hash: hash)
      usedCount &+= 1
      claimCount &+= 1
      return slot
    }
    return -1
  }

  /// Forgets the slot's slice, which must not be dirty.
  mutating func remove(_ slot: Int, hashOf: (UInt64) -> UInt64) {
    unsafe assert(slots[slot].dirtyGeneration == 0 && !slots[slot].isHeld)
    var hole = unsafe Int(truncatingIfNeeded: hashOf(slots[slot].key)) & indexMask
    while unsafe Int(index[hole]) != slot + 1 { hole = (hole + 1) & indexMask }
    unsafe slots[slot] = CacheSlot()
    usedCount &-= 1
    var next = (hole + 1) & indexMask
    while unsafe index[next] != 0 {
      let home = unsafe Int(truncatingIfNeeded: hashOf(slots[Int(index[next]) - 1].key)) & indexMask
      if (next - home) & indexMask >= (next - hole) & indexMask {
        unsafe index[hole] = unsafe index[next]
        hole = next
      }
      next = (next + 1) & indexMask
    }
    unsafe index[hole] = 0
  }

  /// Holds the slot's slice or lets it go; call while it is dirty.
  ///
  /// - Returns: whether it is held: no more than half of the slots are, so that there is room for others.
  mutating func hold(_ slot: Int, _ wanted: Bool) -> Bool {
    if unsafe slots[slot].isHeld == wanted { return wanted }
    if wanted && (heldCount + 1) * 2 > slotCount { return false }
    unsafe slots[slot].isHeld = wanted
    heldCount += wanted ? 1 : -1
    return wanted
  }

  /// Notes a change to the slot; call under the same lock hold as the change itself.
  @inline(__always) mutating func markDirty(_ slot: Int) {
    if unsafe slots[slot].dirtyGeneration == 0 { dirtyCount &+= 1 }
    generation &+= 1
    unsafe slots[slot].dirtyGeneration = generation
  }

  /// Ends a write-back: clean, unless the slice changed after the copy of `generation` was taken.
  mutating func markWritten(_ slot: Int, key: UInt64, generation: UInt64) {
    guard unsafe slots[slot].key == key, unsafe slots[slot].dirtyGeneration == generation,
      generation != 0
    else { return }
    unsafe slots[slot].dirtyGeneration = 0
    dirtyCount -= 1
  }

  private func insert(_ slot: Int, hash: UInt64) {
    var position = Int(truncatingIfNeeded: hash) & indexMask
    while unsafe index[position] != 0 { position = (position + 1) & indexMask }
    unsafe index[position] = UInt32(slot + 1)
  }
}
