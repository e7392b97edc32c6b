import BlockCore
import QCOW2Format

/// Places compressed clusters next to each other in runs of host clusters that it takes from the arenas.
///
/// The packer holds the reference that came with the reservation on each cluster that it may still
/// use, so that none of them can become free under it. An item that leaves a cluster behind takes
/// that reference over; one that ends in a cluster with room left adds a reference to it. Items start
/// at multiples of ``alignment``, so that no transfer has to read what another is writing. After a
/// crash, what was reserved and not used is leaked.
///
/// Locks: `mutex` is held across I/O on refcount blocks, never across data.
final class CompressedPacker: @unchecked Sendable {  // why: `mutex` guards all mutable state
  /// What the place and the length of each transfer are multiples of; 1 through the page cache.
  let alignment: Int
  private let arenas: WorkerArenas
  private let allocator: ClusterAllocator
  private let mutex = AsyncMutex()
  /// The next free byte, and the end of the reserved run.
  private var next: UInt64 = 0
  private var end: UInt64 = 0

  init(_ arenas: WorkerArenas, _ allocator: ClusterAllocator, alignment: Int) {
    self.arenas = arenas
    self.allocator = allocator
    self.alignment = alignment
  }

  private var geometry: ClusterGeometry { allocator.geometry }
  private var bits: UInt64 { UInt64(geometry.clusterBits) }

  /// Reserves room for `length` bytes, which with alignment is below the cluster size; its references
  /// are counted.
  ///
  /// - Parameters:
  ///   - length: In bytes.
  ///   - worker: From whose arena a new run comes.
  /// - Returns: nil if no descriptor can say where the room is.
  /// - Throws: ``ImageError/noSpace``, or what a refcount block that cannot be read or written leads to.
  func take(_ length: Int, worker: Int) async throws(ImageError) -> CompressedDescriptor? {
    await mutex.acquire()
    defer { mutex.release() }
    let room = UInt64((length + alignment - 1) & ~(alignment - 1))
    if end - next < room { try await reserve(worker) }
    guard
      let place = CompressedDescriptor(offset: HostOffset(next), length: length, geometry)
    else { return nil }
    let last = place.hostClusters(geometry).upperBound
    var after = next + room
    if after >> bits == last.number, try await !allocator.addReference(last) {
      // The refcount can go no higher: the room that is left in the cluster stays unused.
      after = geometry.start(of: last + 1).bytes
    }
    next = after
    return place
  }

  /// A new run; what is left of the old one goes back.
  private func reserve(_ worker: Int) async throws(ImageError) {
    try await giveBack()
    let run = try await arenas.take(upTo: max((1 << 20) >> bits, 2), worker: worker)
    next = geometry.start(of: run.start).bytes
    end = geometry.start(of: run.end).bytes
  }

  /// Lets go of the clusters that the packer has not used up.
  private func giveBack() async throws(ImageError) {
    let first = HostCluster(next >> bits)
    let count = (end >> bits) - first.number
    next = 0
    end = 0
    try await allocator.unreserve(
      ClusterRun(start: first, count: count, isFresh: false))
  }

  /// The clusters that still have the packer's own reference.
  func reserved() async -> Range<HostCluster> {
    await mutex.acquire()
    defer { mutex.release() }
    return HostCluster(next >> bits)..<HostCluster(end >> bits)
  }

  /// Gives everything back at close.
  func close() async throws(ImageError) {
    await mutex.acquire()
    defer { mutex.release() }
    try await giveBack()
  }
}
