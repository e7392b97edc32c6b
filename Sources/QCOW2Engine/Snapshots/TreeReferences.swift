import BlockCore
import QCOW2Format

/// Counts the references of a copy of L1, or takes them back, piece by piece beside the guest.
///
/// The tree below the copy does not change meanwhile: whatever would, copies it first. A piece is one
/// slice of an L2 table, all of it or nothing; ``position`` says where to go on.
struct TreeReferences: Sendable {
  enum Change: Sendable {
    /// The tables' entries lose COPIED, too: all that they lead to is shared from now on.
    case raise
    /// The removal of the copy is durable, and nobody reads through it any more. What nothing refers to
    /// afterwards is punched, if asked for.
    case lower(punches: Bool)
  }

  /// A piece: the index of the L1 entry, and the slice of its table.
  struct Position: Sendable, Comparable {
    var index: Int
    var slice: UInt64

    static func < (one: Position, other: Position) -> Bool {
      (one.index, one.slice) < (other.index, other.slice)
    }
  }

  private let entries: [L1Entry]
  private let end: Position
  /// The next piece.
  private(set) var position = Position(index: 0, slice: 0)

  /// All references of `entries`, or those of the pieces before `end`: what a raise that did not come
  /// to its end has counted.
  init(_ entries: [L1Entry], upTo end: Position? = nil) {
    self.entries = entries
    self.end = end ?? Position(index: entries.count, slice: 0)
  }

  /// The indexes of the entries that have a table.
  var tables: [Int] { entries.indices.filter { entries[$0].l2Table != nil } }

  /// Does the next piece.
  ///
  /// A table is counted with its first slice when references are raised, and with its last slice when
  /// they are lowered: as long as any of its clusters has the reference, so has the table.
  ///
  /// - Returns: False when there was none left.
  /// - Throws: With the piece done if ``position`` is behind it, else with nothing of it done.
  mutating func step(_ change: Change, in image: Image) async throws(ImageError) -> Bool {
    while position.index < entries.count && entries[position.index].l2Table == nil {
      position = Position(index: position.index + 1, slice: 0)
    }
    guard position < end, position.index < entries.count,
      let table = entries[position.index].l2Table
    else { return false }
    let key = table + position.slice * UInt64(image.mapping.cache.sliceSize)
    var clusters = try await Self.clusters(key, image)
    let own = image.geometry.hostCluster(of: table)
    let next = next(in: image)
    switch change {
    case .raise:
      if position.slice == 0 { clusters.append(own) }
      try await image.supply.allocator.addReferences(clusters)
      position = next
      image.durability.noteDirty()
      try await Self.takeCopied(key, image)
    case .lower(let punches):
      if next.slice == 0 || next == end { clusters.append(own) }
      try await image.supply.allocator.dropReferences(clusters, punches: punches)
      position = next
      image.durability.noteDirty()
    }
    return true
  }

  private func next(in image: Image) -> Position {
    let slices = image.geometry.clusterSize / UInt64(image.mapping.cache.sliceSize)
    return position.slice + 1 == slices
      ? Position(index: position.index + 1, slice: 0)
      : Position(index: position.index, slice: position.slice + 1)
  }

  /// What the entries of a slice refer to, each as often as it is counted.
  static func clusters(
    _ key: HostOffset, _ image: Image
  ) async throws(ImageError) -> [HostCluster] {
    let rules = image.mapping.rules
    let geometry = image.geometry
    return try unsafe await image.mapping.cache.lookAt(key, storage: image.reader.storage) {
      bytes in
      var found: [HostCluster] = []
      found.reserveCapacity(image.mapping.cache.sliceSize / rules.entrySize + 1)
      for position in stride(from: 0, to: image.mapping.cache.sliceSize, by: rules.entrySize) {
        let entry = unsafe L2Entry(raw: bytes.be64(position))
        if entry.kind(hasZeroFlag: false) == .compressed {
          found += CompressedDescriptor(entry, geometry).hostClusters(geometry)
        } else if !rules.hasDataFile, let host = entry.hostCluster {
          found.append(geometry.hostCluster(of: host))
        }
      }
      return found
    }
  }

  /// Takes COPIED from the entries of a slice whose clusters have just got another reference.
  private static func takeCopied(_ key: HostOffset, _ image: Image) async throws(ImageError) {
    let cache = image.mapping.cache
    let entrySize = image.mapping.rules.entrySize
    try await cache.withSlice(
      key, storage: image.reader.storage, makeRoom: image.supply.allocator.makeRoom
    ) { slice in
      for position in stride(from: 0, to: cache.sliceSize, by: entrySize) {
        let entry = unsafe L2Entry(raw: slice.bytes.be64(position))
        if entry.isCopied && entry.kind(hasZeroFlag: false) == .data {
          slice.storeBE64(entry.copied(false).raw, position)
        }
      }
    }
  }
}
