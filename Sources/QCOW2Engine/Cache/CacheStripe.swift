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

/// The bookkeeping of one cached slice; its bytes lie in another region of ``MetadataMemory``, at the
/// slot's number.
///
/// All zero bytes are an empty slot. A process that finds the slots after another one has died writes the
/// slices that are *ahead* to the host file, each at its ``key``. Slices that are resident and not ahead
/// have the host file's bytes. Both hold at any instruction:
/// - ``dirtyGeneration`` and ``isHeld`` are single stores, and a slot is ahead while either says so. It
///   becomes ahead before its bytes change, and is no more after the host file has them. A slice is
///   dirty while it comes to be held, and while it is let go.
/// - The key changes while the slot is empty or loading: such a slot is not ahead, and nobody takes its
///   bytes for a slice. A slot becomes empty before its key goes, and loading after it came, by single
///   stores; it becomes resident once it has its bytes.
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

  /// The host file may have less than the slice.
  var isAhead: Bool { dirtyGeneration != 0 || isHeld }
}

/// The slots and index that one lock guards.
///
/// The index is open-addressed with linear probing and backward-shift deletion, and holds slot
/// numbers plus one. Nothing here allocates after `init`.
@safe
struct CacheStripe: ~Copyable {
  /// The bytes of the stripe's slots.
  private let slices: UnsafeMutableRawPointer
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
  #if DEBUG
    private let region: MetadataRegion
  #endif

  /// - Parameters:
  ///   - slots: the cache's ``CacheSlot``s; outlives the stripe, as `slices` does.
  ///   - slices: the cache's slices.
  ///   - sliceSize: the bytes of a slice.
  ///   - first: the stripe's first slot among the cache's.
  ///   - slotCount: the number of the stripe's slots.
  /// - Throws: ``ImageError/noMemory(bytes:)``.
  init(
    _ slots: MetadataRegion, _ slices: MetadataRegion, sliceSize: Int, first: Int,
    count slotCount: Int
  ) throws(ImageError) {
    var size = 4
    while size < slotCount * 2 { size *= 2 }
    unsafe index = try unsafe ZeroedMemory.allocate(size)
    unsafe self.slots = unsafe slots.values(
      CacheSlot.self, at: first * MemoryLayout<CacheSlot>.stride, count: slotCount)
    assert((first + slotCount) * sliceSize <= slices.byteCount)
    unsafe self.slices = unsafe slices.base + first * sliceSize
    self.sliceSize = sliceSize
    self.slotCount = slotCount
    indexMask = size - 1
    #if DEBUG
      region = slots
    #endif
  }

  deinit { unsafe free(index) }

  /// The slice in a slot, valid while the slot keeps its key.
  @inline(__always) func bytes(_ slot: Int) -> UnsafeMutableRawPointer {
    assert(slot >= 0 && slot < slotCount)
    return unsafe slices + slot &* sliceSize
  }

  /// See ``MetadataRegion/noteStore()``.
  @inline(__always) func noteStore() {
    #if DEBUG
      region.noteStore()
    #endif
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
      setKey(slot, key)
      insert(slot, hash: hash)
      usedCount &+= 1
      claimCount &+= 1
      return slot
    }
    return -1
  }

  /// Gives an empty slot its key, and lets it load.
  private func setKey(_ slot: Int, _ key: UInt64) {
    unsafe assert(slots[slot].state == .empty && !slots[slot].isAhead)
    unsafe slots[slot].key = key
    MetadataMemory.orderStores()
    noteStore()
    unsafe slots[slot].state = .loading
    noteStore()
  }

  /// Forgets the slot's slice, which must not be dirty.
  mutating func remove(_ slot: Int, hashOf: (UInt64) -> UInt64) {
    unsafe assert(!slots[slot].isAhead)
    var hole = unsafe Int(truncatingIfNeeded: hashOf(slots[slot].key)) & indexMask
    while unsafe Int(index[hole]) != slot + 1 { hole = (hole + 1) & indexMask }
    unsafe slots[slot].state = .empty
    MetadataMemory.orderStores()
    noteStore()
    unsafe slots[slot] = CacheSlot()
    noteStore()
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
    unsafe assert(slots[slot].dirtyGeneration != 0)
    unsafe slots[slot].isHeld = wanted
    noteStore()
    heldCount += wanted ? 1 : -1
    return wanted
  }

  /// Notes a change to the slot; call before the change, under the same lock hold.
  @inline(__always) mutating func markDirty(_ slot: Int) {
    unsafe assert(slots[slot].state != .empty && slots[slot].state != .loading)
    if unsafe slots[slot].dirtyGeneration == 0 { dirtyCount &+= 1 }
    generation &+= 1
    unsafe slots[slot].dirtyGeneration = generation
    MetadataMemory.orderStores()
    noteStore()
  }

  /// Ends a write-back: clean, unless the slice changed after the copy of `generation` was taken.
  mutating func markWritten(_ slot: Int, key: UInt64, generation: UInt64) {
    guard unsafe slots[slot].key == key, unsafe slots[slot].dirtyGeneration == generation,
      generation != 0
    else { return }
    unsafe slots[slot].dirtyGeneration = 0
    noteStore()
    dirtyCount -= 1
  }

  private func insert(_ slot: Int, hash: UInt64) {
    var position = Int(truncatingIfNeeded: hash) & indexMask
    while unsafe index[position] != 0 { position = (position + 1) & indexMask }
    unsafe index[position] = UInt32(slot + 1)
  }
}
