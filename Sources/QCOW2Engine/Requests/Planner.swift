import BlockCore
import QCOW2Format

/// Plans what is more than one plain cluster: the general part of the hit path.
///
/// No allocation, no waiting.
final class Planner: Sendable {
  let mapping: Mapping
  let admission: Admission
  let durability: Durability
  let reader: Reader
  // Of the parts above: each step from one object to the next could cost a retain.
  let tables: L2Tables
  let cache: SliceCache
  let lookup: Lookup
  let inFlight: InFlightRanges
  let arenas: WorkerArenas
  let frees: DeferredFrees
  /// Keeps the persistent bitmaps; nil if the image is only read.
  let changes: ChangeTracker?
  /// Writes of the hit path into new clusters.
  let fresh: FreshWrites
  let options: ImageOptions
  /// What host transfers call the file with the guest's data; -1 keeps requests off the hit path.
  let planFile: Int

  init(
    _ parts: ImageParts, _ admission: Admission, _ supply: ClusterSupply,
    _ durability: Durability, _ reader: Reader, changes: ChangeTracker?, fresh: FreshWrites
  ) {
    mapping = reader.mapping
    self.admission = admission
    tables = mapping.tables
    cache = mapping.cache
    lookup = mapping.lookup
    inFlight = mapping.inFlight
    arenas = supply.arenas
    frees = supply.frees
    self.durability = durability
    self.reader = reader
    self.changes = changes
    self.fresh = fresh
    options = parts.options
    planFile =
      parts.guestData.isTransformed ? -1 : parts.sources.fileNumber.map { Int($0) } ?? -1
  }

  @inline(__always) var geometry: ClusterGeometry { mapping.geometry }
  @inline(__always) var rules: EntryRules { mapping.rules }

  /// Plans a request whatever it and its clusters are like; not inlined, since it would slow down what
  /// comes before it.
  @inline(never) func plan(
    _ request: BlockRequest, at slot: RequestSlot,
    into plan: UnsafeMutableBufferPointer<HostTransfer>
  ) -> PlanResult {
    let isWrite = request.operation == .write
    let isPlannable =
      isWrite
      ? !request.isFUA && !request.compresses && !options.readOnly && !options.compressesWrites
        && durability.health.isGood
      : request.operation == .read
    guard admission.admitNow(request, at: slot) else { return .needsService }
    if !isPlannable {
      admission.leave(at: slot)
      return .needsService
    }
    if isWrite, let changes, !changes.covers(request.offset, request.length) {
      admission.leave(at: slot)
      return .needsService
    }
    var builder = unsafe PlanBuilder(plan)
    let isPlanned =
      isWrite
      ? planWrite(request, &builder)
        || planFresh(request, at: slot, &builder)
      : planRead(request.offset, request.length, &builder) == request.length
    if isPlanned { return .transfers(count: builder.count) }
    admission.leave(at: slot)
    return .needsService
  }

  /// Maps a range for reading, through the backing chain.
  ///
  /// - Returns: the bytes mapped; less than `length` when the slow path must take over.
  func planRead(
    _ offset: GuestOffset, _ length: UInt64, _ builder: inout PlanBuilder
  ) -> UInt64 {
    guard planFile >= 0 else { return 0 }
    var done: UInt64 = 0
    while done < length {
      let step = planStep(offset + done, length &- done, isWrite: false, &builder)
      done &+= step.covered
      guard step.unallocated > 0 else {
        if step.covered == 0 { return 0 }
        continue
      }
      let covered = planUnallocated(offset + done, step.unallocated, &builder)
      if covered == 0 { return 0 }
      done &+= covered
    }
    return done
  }

  /// With no lock held: the next image of the chain has locks of its own, of the same rank.
  private func planUnallocated(
    _ offset: GuestOffset, _ length: UInt64, _ builder: inout PlanBuilder
  ) -> UInt64 {
    guard reader.hasBacking else { return builder.appendZeroes(length) ? length : 0 }
    if options.copyOnRead { return 0 }
    return reader.backingSlot.plan(offset, length, into: &builder)
  }

  private func planWrite(_ request: BlockRequest, _ builder: inout PlanBuilder) -> Bool {
    guard planFile >= 0 else { return false }
    var done: UInt64 = 0
    while done < request.length {
      let step = planStep(
        request.offset + done, request.length &- done, isWrite: true, &builder)
      if step.covered == 0 || step.unallocated > 0 { return false }
      done &+= step.covered
    }
    return true
  }

  /// How far one step got: bytes mapped, then bytes found not to be in this image.
  struct PlanStep {
    var covered: UInt64 = 0
    var unallocated: UInt64 = 0

    @inline(__always) var length: UInt64 { covered &+ unallocated }
  }

  /// Maps the start of a range, up to the end of one slice at most.
  ///
  /// - Returns: nothing covered and nothing unallocated when the slow path must take over.
  @inline(__always) private func planStep(
    _ offset: GuestOffset, _ remaining: UInt64, isWrite: Bool, _ builder: inout PlanBuilder
  ) -> PlanStep {
    let place = tables.place(Int(geometry.l1Index(of: offset)))
    guard case .at(let table, let isOwn) = place, isOwn || !isWrite else {
      if isWrite || place != .missing { return PlanStep() }
      let length = min(
        remaining, geometry.bytesPerL2Table - offset.bytes & (geometry.bytesPerL2Table - 1))
      return PlanStep(unallocated: length)
    }
    let index = geometry.l2Index(of: offset) << UInt64(geometry.l2EntryBits)
    let key = cache.key(of: table + index)
    let position = Int(index) & (cache.sliceSize - 1)
    return unsafe cache.withResident(key) { bytes in
      rules.isExtended
        ? unsafe planEntries(bytes, position, offset, remaining, isWrite, true, &builder)
        : unsafe planEntries(bytes, position, offset, remaining, isWrite, false, &builder)
    } ?? PlanStep()
  }

  /// Maps clusters from the entry at byte `position` of a slice on; call under the stripe's lock.
  ///
  /// Inlined twice: `isExtended` is a constant.
  @inline(__always) private func planEntries(
    _ bytes: UnsafeRawPointer, _ position: Int, _ offset: GuestOffset, _ remaining: UInt64,
    _ isWrite: Bool, _ isExtended: Bool, _ builder: inout PlanBuilder
  ) -> PlanStep {
    var position = position
    var step = PlanStep()
    while step.length < remaining && position < cache.sliceSize {
      let entry = unsafe ClusterEntry(
        L2Entry(raw: bytes.be64(position)),
        SubclusterBitmap(raw: isExtended ? bytes.be64(position &+ 8) : 0))
      let guest = offset + step.length
      let found = lookup.inCluster(
        entry, at: guest, upTo: remaining &- step.length, isExtended: isExtended,
        forWriting: isWrite)
      // What lies behind bytes that are not here is for the next step.
      if step.unallocated > 0 && found.kind != .unallocated { return step }
      guard plan(found, isWrite, &step, &builder) else { return PlanStep() }
      if (guest.bytes &+ found.length) & geometry.clusterMask == 0 {
        position &+= isExtended ? 16 : 8
      }
    }
    return step
  }

  /// Adds what was found to a plan.
  ///
  /// - Returns: false if it is not for the hit path.
  @inline(__always) private func plan(
    _ found: Found, _ isWrite: Bool, _ step: inout PlanStep, _ builder: inout PlanBuilder
  ) -> Bool {
    switch found.kind {
    case .inPlace: break
    case .data: if isWrite { return false }
    case .zero:
      step.covered &+= found.length
      return !isWrite && builder.appendZeroes(found.length)
    case .unallocated:
      step.unallocated &+= found.length
      return !isWrite
    case .compressed, .other: return false
    }
    step.covered &+= found.length
    return builder.append(
      file: UInt8(truncatingIfNeeded: planFile), found.host, found.length)
  }
}
