import BlockCore
import QCOW2Format

extension Image {
  /// DISCARD: whole clusters inside the range lose their data; afterwards they read as zeros.
  ///
  /// Partial clusters at the ends are left alone, save the disk's last one.
  func discard(_ request: BlockRequest, worker: Int) async throws(ImageError) {
    guard let range = wholeClusters(request) else { return }
    try await changeClusters(range, worker: worker) { entry in
      // Without a backing file, unallocated reads as zeros.
      entry.kind(hasZeroFlag: self.header.hasZeroFlag) == .zero && entry.hostCluster == nil
        ? entry : .unallocated
    }
  }

  /// The clusters that lie wholly inside a request; nil if there are none.
  func wholeClusters(_ request: BlockRequest) -> Range<UInt64>? {
    let first = geometry.clusters(covering: request.offset.bytes)
    let end = request.offset.bytes + request.length
    let last =
      end == size
      ? geometry.clusters(covering: end) : end >> UInt64(geometry.clusterBits)
    return first < last ? first..<last : nil
  }

  /// Replaces the entries of guest clusters by `change` of the old ones, slice by slice.
  ///
  /// What the old entries referred to is released once the new ones are durable.
  func changeClusters(
    _ clusters: Range<UInt64>, worker: Int, _ change: (L2Entry) -> L2Entry
  ) async throws(ImageError) {
    var next = clusters.lowerBound
    while next < clusters.upperBound {
      let part = slices.part(
        from: geometry.start(ofGuestCluster: next),
        length: (clusters.upperBound - next) << UInt64(geometry.clusterBits))
      try await changePart(part, worker: worker, change)
      next = part.clusters.upperBound
    }
  }

  private func changePart(
    _ part: SlicePart, worker: Int, _ change: (L2Entry) -> L2Entry
  ) async throws(ImageError) {
    await inFlight.acquire(part.clusters)
    defer { inFlight.release(part.clusters) }
    guard let present = try tables.entry(part.l1Index).l2Table else { return }
    let first = try await withEntries(part, table: present) { entries in
      (0..<entries.count).first { change(entries[$0]) != entries[$0] }
    }
    if first == nil { return }
    let table = try await tables.writableTable(part.l1Index, worker: worker)
    let (freed, bad) = try await withEntries(part, table: table) { entries in
      self.replace(&entries, change)
    }
    frees.add(freed)
    noteDirty()
    if let bad {
      try check(bad.entry, cluster: part.clusters.lowerBound + UInt64(bad.index))
      throw .overlapsMetadata(cluster: bad.entry.hostCluster.map(geometry.hostCluster) ?? 0)
    }
  }

  /// Replaces entries up to the first one that breaks the format.
  private func replace(
    _ entries: inout SliceEntries, _ change: (L2Entry) -> L2Entry
  ) -> (freed: [ClusterRun], bad: (entry: L2Entry, index: Int)?) {
    var freed: [ClusterRun] = []
    for index in 0..<entries.count {
      let old = entries[index]
      let host = old.hostCluster ?? HostOffset(0)
      let isBad =
        host.bytes & geometry.clusterMask != 0
        || host.bytes != 0 && metadata.contains(geometry.hostCluster(of: host))
      if isBad || old.kind(hasZeroFlag: header.hasZeroFlag) == .compressed {
        return (freed, (old, index))
      }
      let new = change(old)
      if new == old { continue }
      noteOld(old, replacedBy: new.hostCluster.map { geometry.hostCluster(of: $0) }, &freed)
      entries[index] = new
    }
    return (freed, nil)
  }
}
