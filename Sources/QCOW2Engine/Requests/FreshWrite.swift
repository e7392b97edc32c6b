import BlockCore
import QCOW2Format

// The hit path of writes into new clusters: no task, no suspension, one host transfer.
//
// Where the clusters around the guest's data need nothing but zeros, and the arena's next clusters
// read as zeros, an allocating write is an ordinary transfer with one thing left to do after it.
// The rules are those of ``writeHeld(_:_:worker:)``: the range is held in ``InFlightRanges`` before
// the old entries are read; refcounts were raised when the arena was filled; then comes the data,
// then the entries, then the release. What cannot be done here without waiting is left to the slow
// path, before anything has changed.

/// A write whose data is on its way into new host clusters.
struct FreshWrite {
  /// The guest clusters; none while there is no such write.
  var clusters = GuestCluster(0)..<GuestCluster(0)
  /// The host cluster of the first.
  var host = HostCluster(0)
  /// The L2 table and the slice in it that are to be changed.
  var table = HostOffset(0)
  var part = SlicePart.none

  @inline(__always) var isPending: Bool { clusters.lowerBound != clusters.upperBound }
}

extension Planner {
  /// Plans a write of which no part is allocated, as one transfer into new clusters.
  ///
  /// - Returns: whether it did; if not, nothing has changed.
  func planFresh(
    _ request: BlockRequest, at slot: RequestSlot, _ builder: inout PlanBuilder
  ) -> Bool {
    guard planFile >= 0, !rules.hasDataFile, !rules.isExtended, request.length > 0 else {
      return false
    }
    let part = mapping.slices.part(from: request.offset, length: request.length)
    guard part.length == request.length, tables.l1.isStored(part.l1Index),
      case .at(let table, isOwn: true) = tables.place(part.l1Index)
    else { return false }
    let claimed = inFlight.claim(part.clusters) {
      newClusters(for: part, table: table, worker: slot.worker)
    }
    guard let claimed else { return false }
    fresh[slot] = FreshWrite(
      clusters: part.clusters, host: claimed, table: table, part: part)
    let inCluster = part.start.bytes & geometry.clusterMask
    builder.restart()
    return builder.append(
      file: UInt8(truncatingIfNeeded: planFile),
      geometry.start(of: claimed) + inCluster, part.length)
  }

  /// Takes clusters from the arena for a part that has none; call with its range held.
  private func newClusters(
    for part: SlicePart, table: HostOffset, worker: Int
  ) -> InFlightRanges.NewClusters? {
    guard let readsZero = readsZeroUnallocated(part, table: table) else { return nil }
    let end = part.start.bytes &+ part.length
    let isWhole = (part.start.bytes | end) & geometry.clusterMask == 0
    if !isWhole && !readsZero { return nil }
    guard
      let run = arenas.takeNow(exactly: part.clusters.count, fresh: !isWhole, worker: worker)
    else { return nil }
    // Another write may join if the clusters are right without this one's data.
    return InFlightRanges.NewClusters(
      host: run.start,
      isOpenToOthers: run.count == 1 && run.isFresh && readsZero)
  }

  /// Whether the guest reads zeros from a part without host clusters; nil if it is not such a part,
  /// or its slice is not resident.
  private func readsZeroUnallocated(_ part: SlicePart, table: HostOffset) -> Bool? {
    let readsZeroAnyway = !reader.hasBacking
    let found = unsafe cache.withResident(cache.key(of: table + part.sliceOffset)) {
      bytes -> Bool? in
      var readsZero = true
      for index in part.firstEntry..<(part.firstEntry &+ part.clusters.count) {
        let entry = unsafe L2Entry(raw: bytes.be64(index &* 8))
        switch rules.state(entry) {
        case .unallocated: readsZero = readsZero && readsZeroAnyway
        case .zero where entry.hostCluster == nil: break
        default: return nil
        }
      }
      return readsZero
    }
    return found ?? nil
  }

  // MARK: After the transfer

  /// Points the entries at the new clusters, if their slice is resident, and gives the range back.
  ///
  /// - Returns: false if the slice must be loaded first: then nothing has changed.
  func endFresh(at slot: RequestSlot, failed: Bool) -> Bool {
    let write = fresh[slot]
    if !failed {
      let part = write.part
      assert(
        inFlight.isHeld(write.clusters), "new clusters are published that nobody holds")
      let isPublished = cache.changeResident(cache.key(of: write.table + part.sliceOffset)) {
        slice in
        var entries = SliceEntries(
          of: slice, first: part.firstEntry, count: part.clusters.count, isExtended: false)
        publish(write, &entries)
      }
      if !isPublished { return false }
      durability.noteDirty()
    }
    release(write, at: slot, isPublished: !failed)
    return true
  }

  /// Ends a write of the hit path as ``endFresh(at:failed:)`` does, and its request with it.
  func finishFresh(at slot: RequestSlot, failed: Bool) -> FinishResult {
    guard endFresh(at: slot, failed: failed) else { return .needsService }
    admission.leave(at: slot)
    return .done
  }

  /// The same on the slow path, for a slice that was evicted meanwhile.
  func serveFresh(at slot: RequestSlot) async throws(ImageError) {
    let write = fresh[slot]
    var isPublished = false
    defer {
      release(write, at: slot, isPublished: isPublished)
      admission.leave(at: slot)
    }
    try await mapping.withEntries(write.part, table: write.table) { self.publish(write, &$0) }
    isPublished = true
    durability.noteDirty()
  }

  private func publish(_ write: FreshWrite, _ entries: inout SliceEntries) {
    var released: [ClusterRun] = []
    for index in 0..<entries.count {
      let host = geometry.start(of: write.host + UInt64(index))
      let new = rules.entry(host: host, allocated: 0, zero: 0)
      // A write that joined may have done it already; then nothing changes.
      entries.link(index, to: new, lookup, released: &released)
    }
    assert(released.isEmpty, "a write into new clusters replaces others")
  }

  private func release(_ write: FreshWrite, at slot: RequestSlot, isPublished: Bool) {
    fresh[slot] = FreshWrite()
    if let unused = inFlight.leave(write.clusters, isPublished: isPublished) {
      frees.add([
        ClusterRun(start: unused, count: UInt64(write.clusters.count), isFresh: false)
      ])
    }
  }
}

/// The write into new clusters of each worker's slot.
@safe
final class FreshWrites: @unchecked Sendable {  // why: each is one request's
  private let writes: UnsafeMutablePointer<FreshWrite>
  /// Of each write, whether it is pending: a byte, for every request that ends is asked.
  private let pending: UnsafeMutablePointer<Bool>
  private let slotsPerWorker: Int

  init(workers: Int, slotsPerWorker: Int) {
    self.slotsPerWorker = slotsPerWorker
    let count = workers * slotsPerWorker
    unsafe writes = .allocate(capacity: count)
    unsafe writes.initialize(repeating: FreshWrite(), count: count)
    unsafe pending = .allocate(capacity: count)
    unsafe pending.initialize(repeating: false, count: count)
  }

  deinit {
    unsafe writes.deallocate()
    unsafe pending.deallocate()
  }

  /// Whether there is a write for a slot, by its number among all: see ``RequestStamps/index(at:)``.
  @inline(__always) func isPending(_ index: Int) -> Bool { unsafe pending[index] }

  subscript(slot: RequestSlot) -> FreshWrite {
    get { unsafe writes[slot.worker &* slotsPerWorker &+ slot.number] }
    set {
      unsafe writes[slot.worker &* slotsPerWorker &+ slot.number] = newValue
      unsafe pending[slot.worker &* slotsPerWorker &+ slot.number] = newValue.isPending
    }
  }
}
