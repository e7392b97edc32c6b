import BlockCore
import QCOW2Format
import Synchronization

/// The cached parts ("slices") of L2 tables, or of refcount blocks, shared by all workers.
///
/// The key is the slice's host offset. Each stripe has one lock; entries are read and changed only
/// under it, in short synchronous sections, so a slice needs no pin: whoever waited looks it up anew.
/// Loading is single-flight: the first comer leaves a `loading` slot and reads without the lock,
/// others wait for the stripe to change. A dirty slice is never evicted; when a stripe has nothing
/// else left, the caller's `makeRoom` writes back a whole round in order. A look-up that changes
/// nothing then reads the host file instead: see ``lookAt(_:storage:_:)``.
@safe
final class SliceCache: @unchecked Sendable {  // why: stripes guard all mutable state
  /// The bytes of a slice: a power of two, at most a cluster.
  let sliceSize: Int
  /// The bits of an offset that are a place in a slice.
  private let positionMask: UInt64
  private let sliceBits: UInt64
  typealias Stripe = LockedStripe<CacheStripe>
  let stripes: LockedStripes<CacheStripe>
  private let stripeMask: UInt64
  /// Where slots and slices lie.
  private let memory: MetadataMemory
  /// The bytes of all slots; memory only where a slot has been used.
  let slices: MetadataRegion
  /// Slices that are dirty now; read without a lock to see whether a round is due.
  let dirtySlices = Atomic<Int>(0)
  /// For statistics: touched by the slow path only.
  let counters = CacheCounters()
  let slotCount: Int

  /// - Parameters:
  ///   - contents: what the slices are of.
  ///   - sliceSize: a power of two, 512 or more.
  ///   - slots: the number of slices wanted, at least 1.
  ///   - memory: where they lie, until it ends.
  /// - Throws: ``ImageError/noMemory(bytes:)`` if there is none for the smallest cache: one is only as
  ///   large as it can be.
  init(
    _ contents: CacheMemory.Contents, sliceSize: Int, slots: Int, in memory: MetadataMemory
  ) throws(ImageError) {
    self.sliceSize = sliceSize
    self.memory = memory
    positionMask = UInt64(sliceSize - 1)
    sliceBits = UInt64(sliceSize.trailingZeroBitCount)
    var count = 1
    while count < 64 && slots / (count * 2) >= 8 { count *= 2 }
    stripeMask = UInt64(count - 1)
    let wanted = min(max(slots / count, 1), Self.mostPerStripe)
    let cache = try CacheMemory.allocate(
      contents, stripes: count, perStripe: wanted, sliceSize: sliceSize, in: memory)
    slices = cache.slices
    stripes = cache.stripes
    slotCount = cache.perStripe * count
  }

  /// Slots are numbered by 31 bits.
  private static let mostPerStripe = 1 << 30

  deinit { stripes.deallocate() }

  /// The slice that holds the byte at `offset`.
  @inline(__always) func key(of offset: HostOffset) -> HostOffset {
    HostOffset(offset.bytes & ~positionMask)
  }

  /// The highest bits choose the stripe, the lower ones the place in its index: see ``stripe(_:)``.
  @inline(__always) func hash(_ key: UInt64) -> UInt64 {
    ((key &>> sliceBits) &* 0x9e37_79b9_7f4a_7c15) &>> 24
  }

  @inline(__always) func stripe(_ hash: UInt64) -> Stripe {
    stripes[Int(truncatingIfNeeded: (hash &>> 34) & stripeMask)]
  }

  @inline(__always) func bytes(
    _ stripe: Stripe, _ slot: Int
  ) -> UnsafeMutableRawPointer {
    unsafe stripe.state.pointee.bytes(slot)
  }

  /// The number of dirty slices at some recent moment.
  var dirtyCount: Int { dirtySlices.load(ordering: .relaxed) }

  /// Reads a resident slice under its lock; nil if it is not there.
  ///
  /// Never waits.
  @inline(__always) func withResident<R>(
    _ key: HostOffset, _ body: (UnsafeRawPointer) -> R
  ) -> R? {
    let hash = hash(key.bytes)
    let stripe = stripe(hash)
    unsafe stripe.lock.pointee.lock()
    defer { unsafe stripe.lock.pointee.unlock() }
    let slot = unsafe stripe.state.pointee.find(key.bytes, hash: hash)
    guard slot >= 0, unsafe stripe.state.pointee.slots[slot].state == .resident else { return nil }
    unsafe stripe.state.pointee.slots[slot].isReferenced = true
    return unsafe body(UnsafeRawPointer(bytes(stripe, slot)))
  }

  /// The big-endian word at a host offset, a multiple of 8; 0 if its slice is not resident.
  @inline(__always) func residentWord(_ offset: UInt64) -> UInt64 {
    let position = offset & positionMask
    let key = offset ^ position
    let hash = hash(key)
    let stripe = stripe(hash)
    unsafe stripe.lock.pointee.lock()
    defer { unsafe stripe.lock.pointee.unlock() }
    let slot = unsafe stripe.state.pointee.find(key, hash: hash)
    guard slot >= 0, unsafe stripe.state.pointee.slots[slot].state == .resident else { return 0 }
    unsafe stripe.state.pointee.slots[slot].isReferenced = true
    return unsafe bytes(stripe, slot).be64(Int(truncatingIfNeeded: position))
  }

  /// Changes a resident slice under its lock.
  ///
  /// Never waits.
  ///
  /// - Returns: false if the slice is not there.
  @inline(__always) func changeResident(
    _ key: HostOffset, _ body: (inout CachedSlice) -> Void
  ) -> Bool {
    let hash = hash(key.bytes)
    let stripe = stripe(hash)
    unsafe stripe.lock.pointee.lock()
    defer { unsafe stripe.lock.pointee.unlock() }
    let slot = unsafe stripe.state.pointee.find(key.bytes, hash: hash)
    guard slot >= 0, unsafe stripe.state.pointee.slots[slot].state == .resident else {
      return false
    }
    run(body, stripe, slot)
    return true
  }

  /// Runs `body` on the slice under its stripe's lock, loading it first if need be.
  ///
  /// See ``CachedSlice`` for how `body` changes it.
  ///
  /// - Throws: what `storage` throws while loading, or `makeRoom` while writing back.
  func withSlice<R>(
    _ key: HostOffset, storage: ImageStorage,
    makeRoom: () async throws(ImageError) -> Void,
    _ body: (inout CachedSlice) -> R
  ) async throws(ImageError) -> R {
    while true {
      switch lookUp(key, body) {
      case .done(let result): return result
      case .load(let slot, let memory):
        return unsafe try await load(key, slot, memory, storage, body)
      case .wait(let version): await waitForChange(key, since: version)
      case .full: try await makeRoom()
      }
    }
  }

  /// Reads the slice into the slot that ``lookUp(_:_:)`` has claimed for it, and runs `body` on it.
  func load<R>(
    _ key: HostOffset, _ slot: Int, _ memory: UnsafeMutableRawPointer, _ storage: ImageStorage,
    _ body: (inout CachedSlice) -> R
  ) async throws(ImageError) -> R {
    // Only this task may touch the memory while the slot is `loading`.
    let target = unsafe DataBuffer(memory: memory, count: sliceSize)
    do { try await storage.read(into: target, at: key) } catch {
      abandon(key, slot)
      throw error
    }
    return finishLoading(key, slot, body)
  }

  @safe
  enum LookUp<R> {
    case done(R)
    case load(slot: Int, memory: UnsafeMutableRawPointer)
    case wait(version: UInt64)
    /// No slot can be had before a round has written dirty slices back.
    case full
  }

  func lookUp<R>(_ key: HostOffset, _ body: (inout CachedSlice) -> R) -> LookUp<R> {
    let hash = hash(key.bytes)
    let stripe = stripe(hash)
    unsafe stripe.lock.pointee.lock()
    defer { unsafe stripe.lock.pointee.unlock() }
    let found = unsafe stripe.state.pointee.find(key.bytes, hash: hash)
    if found >= 0 {
      if unsafe stripe.state.pointee.slots[found].state == .loading {
        counters.noteWait()
        return unsafe .wait(version: stripe.state.pointee.waiters.version)
      }
      unsafe stripe.state.pointee.slots[found].isReferenced = true
      return .done(run(body, stripe, found))
    }
    let used = unsafe stripe.state.pointee.usedCount
    let slot = unsafe stripe.state.pointee.claim(key.bytes, hash: hash, hashOf: self.hash)
    if slot >= 0 {
      unsafe counters.noteLoad(hasEvicted: stripe.state.pointee.usedCount == used)
      return unsafe .load(slot: slot, memory: bytes(stripe, slot))
    }
    let hasDirty = unsafe stripe.state.pointee.dirtyCount > 0
    return unsafe hasDirty ? .full : .wait(version: stripe.state.pointee.waiters.version)
  }

  /// Runs `body` on a slot that has its bytes; call under the lock.
  @inline(__always) private func run<R>(
    _ body: (inout CachedSlice) -> R, _ stripe: Stripe, _ slot: Int
  ) -> R {
    let slots = unsafe stripe.state.pointee.slots
    unsafe slots[slot].state = .resident
    let wasDirty = unsafe slots[slot].dirtyGeneration != 0
    var slice = unsafe CachedSlice(stripe.state, slot)
    let result = body(&slice)
    if unsafe !wasDirty && slots[slot].dirtyGeneration != 0 {
      dirtySlices.wrappingAdd(1, ordering: .relaxed)
    }
    return result
  }

  func finishLoading<R>(
    _ key: HostOffset, _ slot: Int, _ body: (inout CachedSlice) -> R
  ) -> R {
    let stripe = stripe(hash(key.bytes))
    let (result, waiters) = unsafe stripe.lock.pointee.withLock {
      unsafe (run(body, stripe, slot), stripe.state.pointee.waiters.takeAll())
    }
    unsafe waiters.forEach { unsafe $0.resume() }
    return result
  }

  /// Takes a slot back whose load has failed, and wakes those who waited for it.
  func abandon(_ key: HostOffset, _ slot: Int) {
    let stripe = stripe(hash(key.bytes))
    let waiters = unsafe stripe.lock.pointee.withLock {
      unsafe stripe.state.pointee.remove(slot, hashOf: hash)
      counters.noteRemoval()
      return unsafe stripe.state.pointee.waiters.takeAll()
    }
    unsafe waiters.forEach { unsafe $0.resume() }
  }

  func waitForChange(_ key: HostOffset, since version: UInt64) async {
    let stripe = stripe(hash(key.bytes))
    unsafe await withUnsafeContinuation { continuation in
      let waits = unsafe stripe.lock.pointee.withLock {
        unsafe stripe.state.pointee.waiters.add(continuation, ifStill: version)
      }
      if !waits { unsafe continuation.resume() }
    }
  }
}
