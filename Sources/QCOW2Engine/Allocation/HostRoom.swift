import BlockCore
import QCOW2Format
import Synchronization

/// What an allocator knows of the room that its host has.
struct HostRoom {
  /// The bytes of the tables that the header points at, as they were at open.
  let tables: [Range<UInt64>]
  /// Refcount blocks, by their index in the refcount table, of which all bytes have storage.
  var storedBlocks: Set<UInt64> = []
  /// ``ClusterAllocator/prepare()`` has been done.
  var isPrepared = false
  /// The file is not cut below this cluster: what lies there was not added by this session.
  var floor: HostCluster
  /// No host cluster from here on was ever asked for.
  var end: HostCluster
  /// The file may be cut when it is closed.
  var mayShrink: Bool
  /// The most clusters that the host is asked for at once.
  var mostAtOnce = UInt64.max

  init(tables: [Range<UInt64>], floor: HostCluster, mayShrink: Bool) {
    self.tables = tables
    self.floor = floor
    self.mayShrink = mayShrink
    end = floor
  }

  /// Notes an answer of the host: that it had no room for as much as it was asked for, or that it had.
  ///
  /// A host that is short is asked for one cluster at a time from then on, so that no run swallows what
  /// other requests wait for. While it has room, the limit doubles.
  mutating func note(isShort: Bool) {
    if isShort {
      mostAtOnce = 1
    } else if mostAtOnce != .max {
      mostAtOnce = mostAtOnce < 1024 ? mostAtOnce * 2 : .max
    }
  }
}

extension Image {
  /// The bytes that a session which was killed leaves behind the image's end at most: two refills of 16
  /// MiB of each of 16 workers.
  package static var mostLeftBehind: UInt64 { 2 * 16 * (16 << 20) }
}

// Storage of the host, on behalf of reservations; all with the allocator's mutex held.

extension ClusterAllocator {
  /// Before the first reservation: sees to the tables' storage and to what a killed session left.
  func prepare() async throws(ImageError) {
    mutex.assertHeld()
    if room.isPrepared { return }
    for table in room.tables {
      let (start, length) = (HostOffset(table.lowerBound), UInt64(table.count))
      // Nobody else writes there: nothing in the tables changes before the first reservation.
      if try await !storage.allocateHoles(at: start, length: length) {
        try await storage.fillHoles(at: start, length: length)
      }
    }
    // Only a hint: what cannot be read there fails the request that needs it.
    if room.mayShrink { try? await findDeadReservation() }
    room.isPrepared = true
  }

  /// Finds what a killed session had reserved and not used: the end of the file, where refcounts are zero
  /// and nothing was ever written.
  ///
  /// It is as good as new. What is longer than any session leaves was put there by an administrator, to
  /// have the room: that stays when the image is closed.
  private func findDeadReservation() async throws(ImageError) {
    let used = try await endOfUse(below: freshFrom, notBelow: HostCluster(0), slices: 64)
    guard used < freshFrom,
      let written = await storage.endOfData(from: geometry.start(of: used))
    else { return }
    let end = freshFrom
    freshFrom = min(freshFrom, max(used, HostCluster(geometry.clusters(covering: written.bytes))))
    if (end - freshFrom) << UInt64(geometry.clusterBits) <= Image.mostLeftBehind {
      room.floor = freshFrom
    }
  }

  /// The end of the last cluster with a refcount below `end`, or `floor` if that is more; a higher place
  /// if there are more slices of refcounts to look through than `slices`.
  private func endOfUse(
    below end: HostCluster, notBelow floor: HostCluster, slices: Int
  ) async throws(ImageError) -> HostCluster {
    var at = end
    for _ in 0..<slices where at > floor {
      let last = at.advanced(by: -1)
      let part = max(refcounts.sliceRange(of: last).lowerBound, floor)..<at
      if try refcounts.sliceKey(of: last) != nil, let used = try await lastUsed(part) {
        return used + 1
      }
      at = part.lowerBound
    }
    return at
  }

  /// Makes sure that the refcount block that counts `cluster` needs no room when it is written back.
  func provideStorage(ofBlockFor cluster: HostCluster) async throws(ImageError) {
    mutex.assertHeld()
    let index = refcounts.tableIndex(of: cluster)
    if room.storedBlocks.contains(index) { return }
    let entry = RefcountTableEntry(raw: refcounts.table.load(Int(index)))
    guard let block = entry.block else { return }
    try await storage.allocateHoles(at: block, length: geometry.clusterSize)
    room.storedBlocks.insert(index)
  }

  /// Grows the file over free clusters at its end, with storage: later writes into them then need neither
  /// a change of length nor an allocation by the host, which file systems serialise.
  ///
  /// One owner does this, in steps of a whole run; of less if the host has no room for so much.
  ///
  /// - Returns: The clusters to be handed out, at least 1. The host has room for all of them, but perhaps
  ///   not for a single one: its write shows that.
  func extendFile(over free: Range<HostCluster>) async throws(ImageError) -> UInt64 {
    mutex.assertHeld()
    let start = geometry.start(of: free.lowerBound)
    var count = min(UInt64(free.count), room.mostAtOnce)
    room.end = max(room.end, free.lowerBound + count)
    let wanted = count
    defer {
      room.note(isShort: count < wanted)
      isShort.store(room.mostAtOnce != .max, ordering: .relaxed)
    }
    while try await storage.reserve(at: start, length: count << UInt64(geometry.clusterBits))
      == .short
    {
      if count == 1 {
        count = 0
        // What is left may do for a part of a cluster, and that may be all that is to be written.
        try await growFile(over: free.lowerBound)
        freshFrom = free.lowerBound + 1
        return 1
      }
      count /= 2
    }
    freshFrom = free.lowerBound + count
    return count
  }

  /// Cuts off what was added to the end of the file and is not in use; at close, after the last flush.
  ///
  /// Only a hint: the image is the same without it.
  func cutFile() async {
    await mutex.acquire()
    defer { mutex.release() }
    guard room.isPrepared, room.mayShrink, let length = try? await storage.length() else { return }
    let end = HostCluster(geometry.clusters(covering: length))
    // Bytes behind all that was asked for are not ours to judge.
    guard end <= max(room.end, freshFrom),
      let used = try? await endOfUse(below: end, notBelow: room.floor, slices: 4096)
    else { return }
    let needed = geometry.start(of: used).bytes
    if needed < length { try? await storage.setLength(needed) }
  }
}
