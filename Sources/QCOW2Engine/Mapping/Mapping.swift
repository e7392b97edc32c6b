import BlockCore
import QCOW2Format
import Synchronization

/// The mapping of an open image: what its active disk has at a guest offset, and where.
///
/// Shared by all workers. Whoever asks has a stamp (``RequestStamps``), which keeps the tables and the
/// clusters that it finds where they are; whoever changes entries also holds their guest clusters
/// (``InFlightRanges``).
final class Mapping: Sendable {
  let geometry: ClusterGeometry
  let rules: EntryRules
  let slices: SliceGeometry
  let tables: L2Tables
  let lookup: Lookup
  /// The virtual size in bytes, down to whole sectors; changes only while the gate is shut.
  let currentSize: Atomic<UInt64>
  let readahead = Readahead()
  /// Guest clusters whose mapping is being changed.
  let inFlight: InFlightRanges
  let storage: ImageStorage
  private let flusher: FlushCoordinator

  init(
    _ rules: EntryRules, size: UInt64, tables: L2Tables, metadata: MetadataMap,
    storage: ImageStorage, flusher: FlushCoordinator
  ) {
    currentSize = Atomic(size & ~511)
    geometry = rules.geometry
    self.rules = rules
    self.tables = tables
    self.storage = storage
    self.flusher = flusher
    slices = SliceGeometry(cluster: rules.geometry, sliceSize: tables.cache.sliceSize)
    inFlight = InFlightRanges(groupBits: slices.entryBits)
    lookup = Lookup(rules: rules, metadata: metadata)
  }

  var cache: SliceCache { tables.cache }
  var size: UInt64 { currentSize.load(ordering: .relaxed) }

  // MARK: Entries of one slice

  /// Looks at the entries of `part` in its slice of the L2 table at `table`, and never writes.
  func lookAtEntries<R>(
    _ part: SlicePart, table: HostOffset, _ body: (SliceEntries) -> R
  ) async throws(ImageError) -> R {
    try unsafe await cache.lookAt(table + part.sliceOffset, storage: storage) { bytes in
      unsafe body(
        SliceEntries(
          bytes: bytes, first: part.firstEntry, count: part.clusters.count,
          isExtended: rules.isExtended))
    }
  }

  /// Looks at, or changes, the entries of `part` in its slice of the L2 table at `table`; the caller
  /// holds its guest clusters.
  ///
  /// May write back a round first, if the cache has no room: see ``lookAtEntries(_:table:_:)``.
  func withEntries<R>(
    _ part: SlicePart, table: HostOffset, _ body: (inout SliceEntries) -> R
  ) async throws(ImageError) -> R {
    assert(inFlight.isHeld(part.clusters), "entries are changed that nobody holds")
    let flusher = self.flusher
    let makeRoom = { () async throws(ImageError) in try await flusher.flush() }
    return try await cache.withSlice(
      table + part.sliceOffset, storage: storage, makeRoom: makeRoom
    ) { slice in
      var entries = SliceEntries(
        of: slice, first: part.firstEntry, count: part.clusters.count,
        isExtended: rules.isExtended)
      return body(&entries)
    }
  }

  /// The entry of the guest cluster that `offset` lies in, if its slice is resident.
  ///
  /// Never waits.
  ///
  /// - Returns: nil also where there is no table that can be used.
  @inline(__always) func residentEntry(at offset: GuestOffset) -> ClusterEntry? {
    guard let table = tables.place(Int(geometry.l1Index(of: offset))).table else { return nil }
    let index = geometry.l2Index(of: offset) << UInt64(geometry.l2EntryBits)
    let position = Int(index) & (cache.sliceSize &- 1)
    return unsafe cache.withResident(cache.key(of: table + index)) { bytes in
      unsafe ClusterEntry(
        L2Entry(raw: bytes.be64(position)),
        SubclusterBitmap(raw: rules.isExtended ? bytes.be64(position &+ 8) : 0))
    }
  }

  // MARK: Errors

  /// What is wrong with an entry that cannot be used.
  func badEntry(_ entry: ClusterEntry, cluster: GuestCluster) -> ImageError {
    let problem =
      rules.problem(entry, at: geometry.start(of: cluster)) ?? .notAtGuestOffset
    let isBitmap = problem == .allocatedAndZero
    return .format(
      .badEntry(
        name: isBitmap ? "subcluster bitmap of guest cluster" : "L2 entry of guest cluster",
        index: cluster.number, value: isBitmap ? entry.bitmap.raw : entry.descriptor.raw,
        problem: problem))
  }
}
