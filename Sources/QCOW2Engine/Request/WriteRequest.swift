import BlockCore
import QCOW2Format

/// What a write may do with the first clusters of its range.
private enum WriteTarget: Sendable {
  /// Consecutive clusters that may be written where they are.
  case inPlace(HostOffset, clusters: Int)
  /// A zero cluster with an unshared host cluster behind it: fill it, then drop the zero flag.
  case reuse(HostOffset, head: L2Entry)
  /// `clusters` that need new host clusters; the old entries of the first and last.
  case allocate(clusters: Int, first: L2Entry, last: L2Entry)
}

extension Image {
  /// WRITE: in place where the cluster is ours alone, else into new host clusters.
  func write(_ request: BlockRequest, worker: Int) async throws(ImageError) {
    var done: UInt64 = 0
    while done < request.length {
      let part = slices.part(from: request.offset + done, length: request.length - done)
      done += try await writePart(part, request.data, at: Int(done), worker: worker)
    }
  }

  /// Writes the start of `part` from `data` at `dataOffset` on.
  ///
  /// Allocate → account → write data → publish → release (DESIGN.md section 4, rule 1): an error
  /// before the publish leaves the old mapping intact.
  ///
  /// - Returns: the bytes written, at least 1.
  private func writePart(
    _ part: SlicePart, _ data: DataBuffer, at dataOffset: Int, worker: Int
  ) async throws(ImageError) -> UInt64 {
    await inFlight.acquire(part.clusters)
    defer { inFlight.release(part.clusters) }
    let table = try await tables.writableTable(part.l1Index, worker: worker)
    let (target, first) = try await withEntries(part, table: table) { entries in
      (self.target(entries), entries[0])
    }
    try check(first, cluster: part.clusters.lowerBound)
    switch target {
    case .inPlace(let host, let clusters):
      let bytes = self.bytes(of: part, clusters: clusters)
      try requireData(host, clusters)
      let inCluster = part.start.bytes & geometry.clusterMask
      try await storage.write(
        from: data.slice(dataOffset, Int(bytes)), at: host + inCluster)
      return bytes
    case .reuse(let host, let old):
      let bytes = self.bytes(of: part, clusters: 1)
      try requireData(host, 1)
      let run = ClusterRun(start: geometry.hostCluster(of: host), count: 1, isFresh: false)
      try await fill(
        run, part, bytes, first: old, last: old, data.slice(dataOffset, Int(bytes)))
      try await publish(run, part, table)
      return bytes
    case .allocate(let clusters, let old, let last):
      let run = try await arenas.take(upTo: UInt64(clusters), worker: worker)
      let bytes = self.bytes(of: part, clusters: Int(run.count))
      // The last entry matters only if the run reaches it: inner clusters are written whole.
      do {
        try await fill(
          run, part, bytes, first: old, last: last, data.slice(dataOffset, Int(bytes)))
        try await publish(run, part, table)
      } catch {
        frees.add([run])
        throw error
      }
      return bytes
    }
  }

  /// The bytes of `part` that lie in its first `clusters` clusters.
  private func bytes(of part: SlicePart, clusters: Int) -> UInt64 {
    min(
      part.length,
      UInt64(clusters) << UInt64(geometry.clusterBits) - part.start.bytes & geometry.clusterMask)
  }

  private func requireData(_ host: HostOffset, _ clusters: Int) throws(ImageError) {
    let first = geometry.hostCluster(of: host)
    if let overlap = metadata.firstOverlap(first..<(first + UInt64(clusters))) {
      throw .overlapsMetadata(cluster: overlap)
    }
  }

  /// Decides for the first entries; all that follow the first are of the same sort.
  private func target(_ entries: SliceEntries) -> WriteTarget {
    let first = entries[0]
    let kind = first.kind(hasZeroFlag: header.hasZeroFlag)
    if kind == .data && first.isCopied, let host = first.hostCluster {
      return .inPlace(host, clusters: inPlaceRun(entries, host))
    }
    if kind == .zero && first.isCopied, let host = first.hostCluster {
      return .reuse(host, head: first)
    }
    var count = 1
    while count < entries.count && needsAllocation(entries[count]) { count += 1 }
    return .allocate(clusters: count, first: first, last: entries[count - 1])
  }

  private func inPlaceRun(_ entries: SliceEntries, _ host: HostOffset) -> Int {
    var count = 1
    while count < entries.count {
      let next = entries[count]
      guard next.isCopied, next.kind(hasZeroFlag: header.hasZeroFlag) == .data,
        next.hostCluster?.bytes == host.bytes &+ UInt64(count) << UInt64(geometry.clusterBits)
      else { break }
      count += 1
    }
    return count
  }

  private func needsAllocation(_ entry: L2Entry) -> Bool {
    switch entry.kind(hasZeroFlag: header.hasZeroFlag) {
    case .unallocated: true
    case .zero, .data: !(entry.isCopied && entry.hostCluster != nil)
    case .compressed: false
    }
  }

  /// Fills new host clusters: the guest's data, and around it what the clusters read as before.
  private func fill(
    _ run: ClusterRun, _ part: SlicePart, _ bytes: UInt64, first: L2Entry, last: L2Entry,
    _ data: DataBuffer
  ) async throws(ImageError) {
    let host = geometry.start(ofHostCluster: run.start)
    let head = part.start.bytes & geometry.clusterMask
    let end = head + bytes
    let tail = (geometry.clusterSize - end & geometry.clusterMask) & geometry.clusterMask
    try await copyOnWrite(first, from: 0, length: head, to: host, isFresh: run.isFresh)
    if tail > 0 {
      let inCluster = end & geometry.clusterMask
      let old = end <= geometry.clusterSize ? first : last
      try await copyOnWrite(
        old, from: inCluster, length: tail, to: host + (end - inCluster), isFresh: run.isFresh)
    }
    try await storage.write(from: data, at: host + head)
  }

  /// Gives `length` bytes at `start` of the new cluster at `target` what the old entry reads as.
  private func copyOnWrite(
    _ old: L2Entry, from start: UInt64, length: UInt64, to target: HostOffset, isFresh: Bool
  ) async throws(ImageError) {
    if length == 0 { return }
    if old.kind(hasZeroFlag: header.hasZeroFlag) == .data, let source = old.hostCluster {
      guard source.bytes & geometry.clusterMask == 0 else {
        throw .format(
          .badOffset(name: "data cluster", offset: source, problem: .unaligned))
      }
      try await copyHostBytes(
        from: source + start, to: target + start, length: length, storage: storage)
    } else if !isFresh {
      try await writeZeroBytes(at: target + start, length: length)
    }
  }

  /// Writes zeros as data: for parts of clusters, where punching gains nothing.
  func writeZeroBytes(at offset: HostOffset, length: UInt64) async throws(ImageError) {
    var done: UInt64 = 0
    while done < length {
      let count = min(length - done, UInt64(zeroes.count))
      try await storage.write(from: zeroes.data.slice(0, Int(count)), at: offset + done)
      done += count
    }
  }

  /// Points the first clusters of `part` at `run`, and lets go of what they pointed at before.
  private func publish(
    _ run: ClusterRun, _ part: SlicePart, _ table: HostOffset
  ) async throws(ImageError) {
    let freed = try await withEntries(part, table: table) { entries in
      var freed: [ClusterRun] = []
      for index in 0..<Int(run.count) {
        let cluster = run.start + UInt64(index)
        self.noteOld(entries[index], replacedBy: cluster, &freed)
        entries[index] = L2Entry(
          data: self.geometry.start(ofHostCluster: cluster), copied: true)
      }
      return freed
    }
    frees.add(freed)
    noteDirty()
  }

  /// Adds the host cluster of `old` to `freed`, unless it is the one that stays.
  func noteOld(_ old: L2Entry, replacedBy new: UInt64?, _ freed: inout [ClusterRun]) {
    guard old.kind(hasZeroFlag: header.hasZeroFlag) != .compressed, let host = old.hostCluster
    else { return }
    let cluster = geometry.hostCluster(of: host)
    if cluster == new { return }
    if let last = freed.last, last.end == cluster {
      freed[freed.count - 1].count += 1
    } else {
      freed.append(ClusterRun(start: cluster, count: 1, isFresh: false))
    }
  }
}
