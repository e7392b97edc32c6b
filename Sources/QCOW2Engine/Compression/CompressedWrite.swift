import BlockCore
import QCOW2Codec
import QCOW2Format

extension Writer {
  /// Whether the first cluster of a part can be compressed: written whole, where the format allows
  /// it.
  func isCompressible(_ part: SlicePart) -> Bool {
    part.start.bytes & geometry.clusterMask == 0
      && part.length >= geometry.clusterSize && !guestData.isTransformed && !guestData.isExternal
  }

  /// Writes the first cluster of `part`, held by the caller, compressed.
  ///
  /// Compressed outside all locks, packed next to others, each with a reference of its own on the
  /// host clusters that it touches.
  ///
  /// - Returns: false if the data is better written plain.
  func writeCompressed(
    _ part: SlicePart, _ data: DataBuffer, worker: Int
  ) async throws(ImageError) -> Bool {
    guard let packed = try compress(data, worker: worker) else { return false }
    let table = try await tables.writableTable(part.l1Index, worker: worker)
    try await tables.provideStorage(part.l1Index)
    guard let place = try await supply.packer.take(packed.length, worker: worker) else {
      return false
    }
    do {
      try await storage.write(from: packed.buffer, at: place.offset)
      try await publish(place, part, table)
    } catch {
      frees.add([place.run(geometry)])
      throw error
    }
    return true
  }

  /// The compressed bytes of a cluster, zeros up to the alignment of transfers; nil if that saves
  /// nothing.
  private func compress(
    _ data: DataBuffer, worker: Int
  ) throws(ImageError) -> (buffer: IOBuffer, length: Int)? {
    guard let source = unsafe data.memory else { throw .needsMemory }
    let context = reader.contexts.context(worker)
    let output = context.compressedOutput
    let length = unsafe context.codec.compress(
      UnsafeRawBufferPointer(start: source, count: Int(geometry.clusterSize)),
      into: UnsafeMutableRawBufferPointer(start: output.base, count: output.count))
    guard let length else { return nil }
    let alignment = supply.packer.alignment
    let buffer = IOBuffer(count: (length + alignment - 1) & ~(alignment - 1))
    guard UInt64(buffer.count) < geometry.clusterSize else { return nil }
    unsafe buffer.base.copyMemory(from: output.base, byteCount: length)
    return (buffer, length)
  }

  private func publish(
    _ place: CompressedDescriptor, _ part: SlicePart, _ table: HostOffset
  ) async throws(ImageError) {
    let lookup = mapping.lookup
    let new = ClusterEntry(place.entry(geometry))
    let (released, bad) = try await mapping.withEntries(part, table: table) { entries in
      var released: [ClusterRun] = []
      let old = entries[0]
      guard lookup.isUsable(old, of: part.clusters.lowerBound) else {
        return (released, old as ClusterEntry?)
      }
      entries.link(0, to: new, lookup, released: &released)
      return (released, nil)
    }
    if let bad { throw mapping.badEntry(bad, cluster: part.clusters.lowerBound) }
    frees.add(released)
    durability.noteDirty()
    durability.health.noteSpaceFound(by: .allocation)
  }
}

extension CompressedDescriptor {
  /// The host clusters that count a reference for it, as a run to release.
  func run(_ geometry: ClusterGeometry) -> ClusterRun {
    let clusters = hostClusters(geometry)
    return ClusterRun(
      start: clusters.lowerBound, count: UInt64(clusters.count), isFresh: false)
  }
}
