package import BlockCore
import QCOW2Format
import Synchronization

/// What a guest range is, as jobs and `map` ask: which image of the chain has it, and how.
///
/// Ranges end where any of it changes, and may end before: neighbouring answers can be alike.
package struct BlockStatus: Equatable, Sendable {
  /// How the range reads.
  package enum Kind: Sendable {
    /// Plain data, encrypted or not, at ``BlockStatus/host``.
    case data
    /// Inside one compressed cluster.
    case compressed
    /// Zeros by what the layer says.
    case zero
    /// Zeros, since no layer has it.
    case unallocated
  }

  package var kind: Kind
  /// In bytes, at least 1.
  package var length: UInt64
  /// Which layer of the chain answers: 0 for the image itself.
  ///
  /// Of what no layer has, the last one that reaches so far.
  package var depth: Int
  /// Where the first byte is, or would be, in the layer's file for data; nil without such a place, and
  /// for compressed clusters and encrypted data.
  package var host: HostOffset?
  /// Data without storage in the host file: reads as zeros.
  ///
  /// Looked for only in images with preallocated metadata, as QEMU does.
  package var isHole = false

  /// A range.
  package init(kind: Kind, length: UInt64, depth: Int = 0, host: HostOffset? = nil) {
    self.kind = kind
    self.length = length
    self.depth = depth
    self.host = host
  }
}

extension Image {
  /// The bytes of a subcluster, or of a cluster where there are none: each is mapped as a whole.
  package var mappingUnit: UInt64 { mapping.rules.subclusterSize }

  /// What the bytes from `offset` on are, through the backing chain, and how many are alike: 1 to
  /// `length`.
  ///
  /// May read L2 slices from the host files. True until the next request changes it.
  ///
  /// - Throws: ``ImageError/badRequest`` for a range that is empty or not inside the disk.
  package func status(
    at offset: GuestOffset, length: UInt64
  ) async throws(ImageError) -> BlockStatus {
    try await query { () async throws(ImageError) in
      guard length > 0, offset.bytes < size, length <= size - offset.bytes else {
        throw .badRequest
      }
      return try await chainStatus(at: offset, length: length)
    }
  }

  /// What this image alone says; ``BlockStatus/Kind/unallocated`` where its backing file is asked.
  package func ownStatus(
    at offset: GuestOffset, length: UInt64
  ) async throws(ImageError) -> BlockStatus {
    try await query { () async throws(ImageError) in
      guard length > 0, offset.bytes < size, length <= size - offset.bytes else {
        throw .badRequest
      }
      return try await mapping.status(at: offset, length: length)
    }
  }

  /// For whoever has a stamp, or an image that nobody changes.
  func chainStatus(
    at offset: GuestOffset, length: UInt64
  ) async throws(ImageError) -> BlockStatus {
    let own = try await detailedStatus(at: offset, length: length)
    guard own.kind == .unallocated, let backing = reader.backing, offset.bytes < backing.length
    else { return own }
    var below = try await backing.status(at: offset, length: own.length)
    below.depth += 1
    return below
  }
}

extension Image {
  /// What this image alone says, with what its file for data adds.
  private func detailedStatus(
    at offset: GuestOffset, length: UInt64
  ) async throws(ImageError) -> BlockStatus {
    var own = try await mapping.status(at: offset, length: length)
    if reader.guestData.isTransformed { own.host = nil }
    guard own.kind == .data, let host = own.host, try await hasPreallocatedMetadata() else {
      return own
    }
    let found = await reader.guestData.storage.file.extent(at: host, length: own.length)
    own.length = min(own.length, found.length)
    own.isHole = found.isHole
    return own
  }

  /// Whether clearly more clusters are in use than the host has given storage for; looked at once.
  private func hasPreallocatedMetadata() async throws(ImageError) -> Bool {
    let known = sparseness.load(ordering: .relaxed)
    if known != 0 { return known == 2 }
    let answer = try await StoredClusters(reader.storage, header).areFewerThanUsed()
    sparseness.store(answer ? 2 : 1, ordering: .relaxed)
    return answer
  }
}

extension ImageLayer {
  package func status(
    at offset: GuestOffset, length: UInt64
  ) async throws(ImageError) -> BlockStatus {
    guard offset.bytes < self.length else { return BlockStatus(kind: .unallocated, length: length) }
    do throws(ImageError) {
      return try await image.chainStatus(
        at: offset, length: min(length, self.length - offset.bytes))
    } catch {
      guard error.isDamage else { throw error }
      throw .brokenBacking(error)
    }
  }
}

extension RawLayer {
  package func status(
    at offset: GuestOffset, length: UInt64
  ) async throws(ImageError) -> BlockStatus {
    guard offset.bytes < self.length else { return BlockStatus(kind: .unallocated, length: length) }
    let host = HostOffset(offset.bytes)
    let found = await storage.file.extent(
      at: host, length: min(length, self.length - offset.bytes))
    return BlockStatus(kind: found.isHole ? .zero : .data, length: found.length, host: host)
  }
}

extension Mapping {
  /// What the image itself says of the bytes from `offset` on.
  ///
  /// Where L2 tables are missing, one answer spans them all.
  func status(at offset: GuestOffset, length: UInt64) async throws(ImageError) -> BlockStatus {
    let part = slices.part(from: offset, length: length)
    guard let table = try tables.usable(part.l1Index).table else {
      let end = try endOfMissingTables(from: part.l1Index, upTo: offset + length)
      return BlockStatus(kind: .unallocated, length: end.bytes - offset.bytes)
    }
    let (first, found) = try await lookAtEntries(part, table: table) { entries in
      (entries[0], self.lookup.status(part, entries))
    }
    guard let found else { throw badEntry(first, cluster: part.clusters.lowerBound) }
    return found
  }

  /// Where the run of L1 entries without a table ends that starts at `index`; `limit` at most.
  private func endOfMissingTables(
    from index: Int, upTo limit: GuestOffset
  ) throws(ImageError) -> GuestOffset {
    let bits = UInt64(geometry.l2Bits + geometry.clusterBits)
    var next = index + 1
    while UInt64(next) << bits < limit.bytes, try tables.usable(next).table == nil { next += 1 }
    return min(limit, GuestOffset(UInt64(next) << bits))
  }
}

extension Lookup {
  /// What the first bytes of a part of a slice are, and where; nil for an entry that breaks the format.
  fileprivate func status(_ part: SlicePart, _ entries: SliceEntries) -> BlockStatus? {
    let found = first(part, entries, forWriting: false)
    switch found.kind {
    case .data, .inPlace:
      return BlockStatus(kind: .data, length: found.length, host: found.host)
    case .compressed: return BlockStatus(kind: .compressed, length: found.length)
    case .zero, .unallocated:
      let kind: BlockStatus.Kind = found.kind == .zero ? .zero : .unallocated
      let (host, length) = place(part, entries, of: found)
      return BlockStatus(kind: kind, length: length, host: host)
    case .other: return nil
    }
  }

  /// Where clusters without data have a place all the same, and how far it is one.
  private func place(
    _ part: SlicePart, _ entries: SliceEntries, of found: Found
  ) -> (host: HostOffset?, length: UInt64) {
    let within = part.start.bytes & rules.geometry.clusterMask
    // The start of a data file is no place to QEMU, if there is no data.
    let cluster = rules.hostCluster(entries[0]).flatMap { $0.bytes == 0 ? nil : $0 }
    let host = cluster.map { $0 + within }
    var length = rules.geometry.clusterSize - within
    var index = 1
    while length < found.length {
      guard rules.hostCluster(entries[index]) == host.map({ $0 + length }) else { break }
      length += rules.geometry.clusterSize
      index += 1
    }
    return (host, min(length, found.length))
  }
}
