import BlockCore
import Synchronization

/// The one place that writes metadata back, and the order in which it does (docs/design.md, section 4, rule 7).
///
///     copied   frees → L1 → L2 → refcount table → refcount blocks      (dependents first)
///     written  refcount blocks | refcount table | L2 | L1 | final sync (dependents last)
///
/// `|` is a barrier. Copying dependents before what they depend on makes each round a consistent cut:
/// whatever an L2 copy points at had its refcount raised before the copy was taken, and that refcount
/// is copied later. Changes made meanwhile belong to the next round. One round runs at a time;
/// flushes that arrive during it join the next one.
///
/// Refcounts of clusters that are reserved and not taken are left out: see ``ReservationMask``.
///
/// With lazy refcounts and the DIRTY bit durable, a round leaves the first two out. The barrier
/// before L2 stays: it is also the one between the guest's data and the entries that lead to it.
/// The frees keep their order in any case, since a cluster whose old pointer is still on the host
/// file must not get new data, whatever its refcount.
@safe
final class FlushCoordinator: @unchecked Sendable {  // why: see `lock`
  private enum Turn {
    case lead
    case done(ImageError?)
  }

  /// Guards `isRunning` and `waiters`; everything else belongs to the one running round.
  private let lock = FutexLock(.flushRound)
  private var isRunning = false
  private var waiters: [UnsafeContinuation<Turn, Never>] = unsafe []

  private let storage: ImageStorage
  /// The external data file; nil if guest data lies in the image file.
  private let externalData: ImageStorage?
  /// L2 entries have two halves, which the disk need not write together.
  private let splitsEntries: Bool
  private let l1: ActiveL1
  private let l2: SliceCache
  private let refcounts: RefcountStore
  private let frees: DeferredFrees
  private let stamps: RequestStamps
  private let health: ImageHealth
  /// If it is off, each round writes refcounts.
  let lazy: LazyRefcounts
  /// The next round shall write refcounts even if they are lazy.
  private let wantsRefcounts = Atomic<Bool>(false)
  /// The next round shall write refcounts and then clear the DIRTY bit.
  private let wantsClean = Atomic<Bool>(false)
  private let l2Batch: WriteBackBatch
  private let refcountBatch: WriteBackBatch
  /// The last round failed because the host had no room: discards make room before they go on.
  let lacksRoom = Atomic<Bool>(false)
  private let mask: ReservationMask
  /// Rounds completed; for statistics and tests.
  let rounds = Atomic<UInt64>(0)

  init(
    storage: ImageStorage, externalData: ImageStorage?, splitsEntries: Bool, l1: ActiveL1,
    l2: SliceCache, refcounts: RefcountStore, arenas: WorkerArenas, frees: DeferredFrees,
    stamps: RequestStamps, health: ImageHealth, lazy: LazyRefcounts
  ) {
    self.storage = storage
    self.externalData = externalData
    self.splitsEntries = splitsEntries
    self.l1 = l1
    self.l2 = l2
    self.refcounts = refcounts
    self.frees = frees
    self.stamps = stamps
    self.health = health
    self.lazy = lazy
    l2Batch = WriteBackBatch(cache: l2)
    mask = ReservationMask(arenas: arenas, refcounts: refcounts)
    refcountBatch = WriteBackBatch(cache: refcounts.cache, mask: mask)
  }

  /// Whether any table in memory is ahead of the host file.
  var hasDirtySlices: Bool { l2.dirtyCount + refcounts.cache.dirtyCount > 0 }

  /// Makes durable everything that completed before the call, refcounts included; joins a round that
  /// has yet to begin.
  ///
  /// A failed barrier is sticky: it and all later flushes throw, and metadata stays unwritten.
  func flush() async throws(ImageError) {
    YieldPoint.flush.pass()
    wantsRefcounts.store(true, ordering: .releasing)
    try await flushLazily()
  }

  /// As ``flush()``, but leaves lazy refcounts in memory: for what the guest has written.
  func flushLazily() async throws(ImageError) {
    guard lock.withLock({ startsNow() }) else { return try await join() }
    try unsafe await lead(served: [])
  }

  /// As ``flush()``, and leaves an image that is not marked dirty on the host file.
  func clean() async throws(ImageError) {
    YieldPoint.flush.pass()
    wantsClean.store(true, ordering: .releasing)
    try await flushLazily()
  }

  private func startsNow() -> Bool {
    if isRunning { return false }
    isRunning = true
    return true
  }

  private func join() async throws(ImageError) {
    let turn = unsafe await withUnsafeContinuation {
      (continuation: UnsafeContinuation<Turn, Never>) in
      let leads = lock.withLock { () -> Bool in
        if startsNow() { return true }
        unsafe waiters.append(continuation)
        return false
      }
      if leads { unsafe continuation.resume(returning: .lead) }
    }
    switch turn {
    case .done(let error): if let error { throw error }
    case .lead:
      // All who waited so far are served by the round that starts now.
      let served = unsafe lock.withLock { () -> [UnsafeContinuation<Turn, Never>] in
        let taken = unsafe waiters
        unsafe waiters = unsafe []
        return unsafe taken
      }
      try unsafe await lead(served: served)
    }
  }

  private func lead(served: [UnsafeContinuation<Turn, Never>]) async throws(ImageError) {
    var failure: ImageError?
    do { try await round() } catch { failure = error }
    let next = unsafe lock.withLock { () -> UnsafeContinuation<Turn, Never>? in
      if unsafe waiters.isEmpty {
        isRunning = false
        return nil
      }
      return unsafe waiters.removeFirst()
    }
    unsafe served.forEach { unsafe $0.resume(returning: .done(failure)) }
    unsafe next?.resume(returning: .lead)
    if let failure { throw failure }
  }

  // MARK: A round

  private func round() async throws(ImageError) {
    try health.requireWriteBack()
    // Whoever asks from here on has its round after this one.
    YieldPoint.flush.pass()
    let cleans = wantsClean.exchange(false, ordering: .acquiringAndReleasing)
    YieldPoint.flush.pass()
    let asked = wantsRefcounts.exchange(false, ordering: .acquiringAndReleasing)
    let freed = frees.takePending()
    let l1 = self.l1.table
    let l1Sectors = l1.takeDirty()
    do {
      try await writeBack(l1Sectors, keepsRefcounts: lazy.isOn && !cleans && !asked)
    } catch {
      if error.errno == .noSpace { lacksRoom.store(true, ordering: .relaxed) }
      frees.restorePending(freed)
      l1.restoreDirty(l1Sectors)
      if cleans { wantsClean.store(true, ordering: .releasing) }
      if asked { wantsRefcounts.store(true, ordering: .releasing) }
      throw error
    }
    l1.wereWritten(l1Sectors)
    lacksRoom.store(false, ordering: .relaxed)
    frees.becameDurable(freed, stamp: stamps.advance())
    YieldPoint.flush.pass()
    rounds.wrappingAdd(1, ordering: .relaxed)
    if cleans { try await lazy.clear() }
  }

  private func writeBack(
    _ l1Sectors: [TableSector], keepsRefcounts: Bool
  ) async throws(ImageError) {
    if l1Sectors.isEmpty && !hasDirtySlices && !refcounts.table.hasDirty
      && (keepsRefcounts || !mask.isStale)
    {
      // The guest has overwritten what it had: its data is all there is.
      return try await barrier()
    }
    var dirty = l2.dirtyKeys()[...]
    var failure: ImageError?
    repeat {
      l2Batch.take(from: &dirty)
      let writesMore = !l2Batch.isEmpty || !l1Sectors.isEmpty
      if keepsRefcounts {
        if writesMore { try await keepRefcounts() }
      } else {
        try await writeRefcounts(before: writesMore)
      }
      if splitsEntries { try await writeHalves() }
      // A slice that cannot be written keeps its old entries on the host file, whose clusters are
      // not freed before a round has written it. So everything else can be made durable.
      do { try await l2Batch.write(to: storage) } catch { failure = failure ?? error }
    } while !dirty.isEmpty
    if !l1Sectors.isEmpty {
      try await barrier()
      try await write(l1Sectors)
    }
    try await barrier()
    if let failure { throw failure }
  }

  /// Makes sure that tables may be written without their refcounts; ends with a barrier.
  private func keepRefcounts() async throws(ImageError) {
    try health.requireWriteBack()
    if lazy.isMarked { return try await barrier() }
    try await externalData?.sync()
    try await lazy.mark()
  }

  /// Writes refcount blocks, then the refcount table; ends with a barrier if `more` follows.
  private func writeRefcounts(before more: Bool) async throws(ImageError) {
    mask.update()
    let table = refcounts.table
    let tableSectors = table.takeDirty()
    do {
      var dirty = refcounts.cache.dirtyKeys()[...]
      while !dirty.isEmpty {
        refcountBatch.take(from: &dirty)
        try await refcountBatch.write(to: storage)
      }
      if !tableSectors.isEmpty {
        try await barrier()
        try await write(tableSectors)
        table.wereWritten(tableSectors)
      }
      if more { try await barrier() }
    } catch {
      table.restoreDirty(tableSectors)
      throw error
    }
  }

  /// Brings extended L2 entries that change in both halves to where one half is left to change.
  private func writeHalves() async throws(ImageError) {
    guard !l2Batch.isEmpty else { return }
    let halves = SplitEntries(l2Batch)
    try await halves.readOld(from: storage)
    for step in SplitEntries.Step.allCases {
      if try await halves.write(step, to: storage) { try await barrier() }
    }
  }

  private func write(_ sectors: [TableSector]) async throws(ImageError) {
    for sector in sectors { try await storage.write(from: sector.buffer, at: sector.at) }
  }

  private func barrier() async throws(ImageError) {
    try health.requireWriteBack()
    try await externalData?.sync()
    try await storage.sync()
  }
}
