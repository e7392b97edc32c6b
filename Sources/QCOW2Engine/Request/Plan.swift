package import BlockCore
import QCOW2Format

// The hit path: what can be mapped with resident slices alone. No allocation, no waiting.

extension Image {
  package func plan(
    _ request: BlockRequest, worker: Int, slot: Int,
    into plan: UnsafeMutableBufferPointer<HostTransfer>
  ) -> PlanResult {
    let isWrite = request.operation == .write
    guard isWrite && !request.isFUA || request.operation == .read,
      !isWrite || (health.allowsWrites && !options.readOnly),
      admitNow(request, worker: worker, slot: slot)
    else { return .needsService }
    var builder = unsafe PlanBuilder(plan)
    var offset = request.offset
    var remaining = request.length
    while remaining > 0 {
      let covered = planStep(offset, remaining, isWrite: isWrite, &builder)
      if covered == 0 {
        leave(worker: worker, slot: slot)
        return .needsService
      }
      offset = offset + covered
      remaining &-= covered
    }
    return .transfers(count: builder.count)
  }

  package func finish(worker: Int, slot: Int) { leave(worker: worker, slot: slot) }

  /// Whether the request is made of whole sectors inside the disk.
  @inline(__always) func inBounds(_ request: BlockRequest) -> Bool {
    (request.offset.bytes | request.length) & 511 == 0 && request.offset.bytes <= size
      && request.length <= size &- request.offset.bytes
  }

  /// Maps the start of a range, up to the end of one slice at most.
  ///
  /// - Returns: the bytes mapped; 0 when the slow path must take over.
  @inline(__always) private func planStep(
    _ offset: GuestOffset, _ remaining: UInt64, isWrite: Bool, _ builder: inout PlanBuilder
  ) -> UInt64 {
    let entry = L1Entry(raw: tables.l1.load(Int(geometry.l1Index(of: offset))))
    guard !entry.hasReservedBits, let table = entry.l2Table,
      table.bytes & geometry.clusterMask == 0, !isWrite || entry.isCopied
    else {
      if isWrite || entry.raw != 0 { return 0 }
      let length = min(
        remaining, geometry.bytesPerL2Table - offset.bytes & (geometry.bytesPerL2Table - 1))
      return builder.append(.zeroes, HostOffset(0), length) ? length : 0
    }
    let index = geometry.l2Index(of: offset) << UInt64(geometry.l2EntryBits)
    let key = l2.key(of: table + index)
    return unsafe l2.withResident(key) { bytes in
      unsafe planSlice(bytes, Int(index) & (l2.sliceSize - 1), offset, remaining, isWrite, &builder)
    } ?? 0
  }

  /// Maps clusters from the entry at byte `position` of a slice on; call under the stripe's lock.
  @inline(__always) private func planSlice(
    _ bytes: UnsafeRawPointer, _ position: Int, _ offset: GuestOffset, _ remaining: UInt64,
    _ isWrite: Bool, _ builder: inout PlanBuilder
  ) -> UInt64 {
    var position = position
    var covered: UInt64 = 0
    var inCluster = offset.bytes & geometry.clusterMask
    while covered < remaining && position < l2.sliceSize {
      let entry = unsafe L2Entry(raw: bytes.be64(position))
      let length = min(geometry.clusterSize &- inCluster, remaining &- covered)
      switch entry.kind(hasZeroFlag: header.hasZeroFlag) {
      case .data:
        guard let host = entry.hostCluster, host.bytes & geometry.clusterMask == 0,
          !isWrite || (entry.isCopied && !metadata.contains(geometry.hostCluster(of: host))),
          builder.append(.file, host + inCluster, length)
        else { return 0 }
      case .unallocated, .zero:
        guard !isWrite, builder.append(.zeroes, HostOffset(0), length) else { return 0 }
      case .compressed: return 0
      }
      covered &+= length
      inCluster = 0
      position &+= 8
    }
    return covered
  }
}

/// Collects transfers, joining neighbours that continue each other.
@safe
struct PlanBuilder {
  private let plan: UnsafeMutableBufferPointer<HostTransfer>
  private(set) var count = 0
  private var dataOffset: UInt32 = 0

  @inline(__always) init(_ plan: UnsafeMutableBufferPointer<HostTransfer>) {
    unsafe self.plan = unsafe plan
  }

  /// - Returns: false when the plan is full.
  @inline(__always) mutating func append(
    _ kind: HostTransfer.Kind, _ host: HostOffset, _ length: UInt64
  ) -> Bool {
    let length32 = UInt32(truncatingIfNeeded: length)
    if count > 0 {
      let last = unsafe plan[count &- 1]
      if last.kind == kind
        && (kind == .zeroes || last.hostOffset.bytes &+ UInt64(last.length) == host.bytes)
      {
        unsafe plan[count &- 1].length = last.length &+ length32
        dataOffset &+= length32
        return true
      }
    }
    if unsafe count == plan.count { return false }
    unsafe plan[count] = HostTransfer(
      kind: kind, length: length32, dataOffset: dataOffset, hostOffset: host)
    count &+= 1
    dataOffset &+= length32
    return true
  }
}
