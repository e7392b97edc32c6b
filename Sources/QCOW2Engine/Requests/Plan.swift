package import BlockCore
import QCOW2Format

// The hit path: what can be mapped with resident slices alone. No allocation, no waiting.

extension Image {
  package func plan(
    _ request: BlockRequest, worker: Int, slot: Int,
    into plan: UnsafeMutableBufferPointer<HostTransfer>
  ) -> PlanResult {
    assert(!plan.isEmpty)
    switch request.plainOperation {
    case .read where hits.plansReads:
      if unsafe planHit(request, worker: worker, slot: slot, isWrite: false, into: plan) {
        return .transfers(count: 1)
      }
    case .write where hits.plansWrites && health.isGoodInPlace:
      if unsafe planHit(request, worker: worker, slot: slot, isWrite: true, into: plan) {
        return .transfers(count: 1)
      }
    default: break
    }
    // Stamps the request anew if it was stamped above: what was looked at for nothing is forgotten.
    return unsafe planAnything(request, worker: worker, slot: slot, into: plan)
  }

  /// Stamps a request and plans it, if it lies in one plain cluster; inlined twice, since each kind
  /// then knows what it looks for.
  ///
  /// - Returns: whether it did; if not, the stamp stays.
  @inline(__always) private func planHit(
    _ request: BlockRequest, worker: Int, slot: Int, isWrite: Bool,
    into plan: UnsafeMutableBufferPointer<HostTransfer>
  ) -> Bool {
    stamps.enter(worker: worker, slot: slot)
    guard gate.isOpen else { return false }
    let host = hits.host(request.offset.bytes, request.length, isWrite: isWrite, size: size)
    guard host != 0 else { return false }
    unsafe plan[0] = HostTransfer(
      kind: .file, file: hits.file, length: UInt32(truncatingIfNeeded: request.length),
      dataOffset: 0, hostOffset: HostOffset(host))
    return true
  }

  /// Plans a request whatever it and its clusters are like; not inlined, since it would slow down what
  /// comes before it.
  @inline(never) private func planAnything(
    _ request: BlockRequest, worker: Int, slot: Int,
    into plan: UnsafeMutableBufferPointer<HostTransfer>
  ) -> PlanResult {
    let isWrite = request.operation == .write
    let isPlannable =
      isWrite
      ? !request.isFUA && !request.compresses && !options.readOnly && !options.compressesWrites
        && health.isGood
      : request.operation == .read
    guard admitNow(request, worker: worker, slot: slot) else { return .needsService }
    if !isPlannable {
      leave(worker: worker, slot: slot)
      return .needsService
    }
    if isWrite, let changes, !changes.covers(request.offset, request.length) {
      leave(worker: worker, slot: slot)
      return .needsService
    }
    var builder = unsafe PlanBuilder(plan)
    let isPlanned =
      isWrite
      ? planWrite(request, &builder)
        || planFresh(request, worker: worker, slot: slot, &builder)
      : planRead(request.offset, request.length, &builder) == request.length
    if isPlanned { return .transfers(count: builder.count) }
    leave(worker: worker, slot: slot)
    return .needsService
  }

  package func finish(worker: Int, slot: Int, failed: Bool) -> FinishResult {
    let index = stamps.index(worker: worker, slot: slot)
    if fresh.isPending(index) {
      return finishFresh(worker: worker, slot: slot, failed: failed)
    }
    stamps.exit(index)
    return gate.isQuiet ? .done : finishWatched(index)
  }

  // What is rare lies in functions of its own, so that `finish` needs no stack.

  @inline(never) private func finishFresh(worker: Int, slot: Int, failed: Bool) -> FinishResult {
    guard endFresh(worker: worker, slot: slot, failed: failed) else { return .needsService }
    leave(worker: worker, slot: slot)
    return .done
  }

  @inline(never) private func finishWatched(_ index: Int) -> FinishResult {
    gate.noteExit(index)
    return .done
  }

  /// Whether the request is made of whole sectors inside the disk.
  @inline(__always) func inBounds(_ request: BlockRequest) -> Bool {
    (request.offset.bytes | request.length) & 511 == 0 && request.offset.bytes <= size
      && request.length <= size &- request.offset.bytes
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
    guard let backing else { return builder.appendZeroes(length) ? length : 0 }
    if options.copyOnRead { return 0 }
    return backing.plan(offset, length, into: &builder)
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
    let key = l2.key(of: table + index)
    let position = Int(index) & (l2.sliceSize - 1)
    return unsafe l2.withResident(key) { bytes in
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
    while step.length < remaining && position < l2.sliceSize {
      let entry = unsafe ClusterEntry(
        L2Entry(raw: bytes.be64(position)),
        SubclusterBitmap(raw: isExtended ? bytes.be64(position &+ 8) : 0))
      let guest = offset + step.length
      let found = mapping.lookup.inCluster(
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
