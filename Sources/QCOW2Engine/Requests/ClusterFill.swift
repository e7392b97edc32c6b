import BlockCore
import QCOW2Format

/// Host clusters that are being filled for a write: the guest's data, and around it what the clusters
/// read as before.
struct ClusterFill: Sendable {
  let part: SlicePart
  let run: ClusterRun
  /// The old entries of the first and the last cluster.
  let first: ClusterEntry
  let last: ClusterEntry
  /// The run is the old host cluster itself: its data stays where it is.
  let keepsHost: Bool
  /// Where the guest's data begins in the first cluster.
  let head: UInt64
  /// The guest's bytes that go into the run.
  let length: UInt64
  private let clusterSize: UInt64

  init(
    _ part: SlicePart, _ run: ClusterRun, first: ClusterEntry, last: ClusterEntry,
    _ geometry: ClusterGeometry, keepsHost: Bool
  ) {
    self.part = part
    self.run = run
    self.first = first
    self.last = last
    self.keepsHost = keepsHost
    clusterSize = geometry.clusterSize
    head = part.start.bytes & geometry.clusterMask
    length = min(part.length, run.count * clusterSize - head)
  }

  /// The bytes of the cluster at `index` of the run that the guest's data covers.
  func written(_ index: Int) -> Range<UInt64> {
    let start = UInt64(index) * clusterSize
    let low = max(head, start) - start
    return low..<(min(head + length, start + clusterSize) - start)
  }
}

extension Writer {
  /// Writes the guest's data, and around it what must be there once the entries change.
  func write(
    _ fill: ClusterFill, _ data: DataBuffer, worker: Int
  ) async throws(ImageError) {
    try await copyAround(fill, cluster: 0, fill.first, worker: worker)
    if fill.run.count > 1 {
      try await copyAround(fill, cluster: Int(fill.run.count) - 1, fill.last, worker: worker)
    }
    try await guestData.write(
      from: data.slice(0, Int(fill.length)),
      at: geometry.start(of: fill.run.start) + fill.head, guest: fill.part.start)
  }

  /// Fills what one cluster of the run needs beside the guest's data.
  private func copyAround(
    _ fill: ClusterFill, cluster index: Int, _ old: ClusterEntry, worker: Int
  ) async throws(ImageError) {
    for range in rangesToCopy(old, written: fill.written(index), keepsHost: fill.keepsHost) {
      try await copy(
        range, of: old, guestCluster: fill.part.clusters.lowerBound + UInt64(index),
        to: geometry.start(of: fill.run.start + UInt64(index)),
        isFresh: fill.run.isFresh, worker: worker)
    }
  }

  /// The bytes of a cluster that must be copied: the rest of each subcluster that is written in part,
  /// and those that have data elsewhere.
  func rangesToCopy(
    _ old: ClusterEntry, written: Range<UInt64>, keepsHost: Bool
  ) -> [Range<UInt64>] {
    var ranges: [Range<UInt64>] = []
    func add(_ low: UInt64, _ high: UInt64) {
      if low >= high { return }
      if let last = ranges.last, last.upperBound == low {
        ranges[ranges.count - 1] = last.lowerBound..<high
      } else {
        ranges.append(low..<high)
      }
    }
    for index in 0..<rules.subclusters {
      let low = UInt64(index) << UInt64(rules.subclusterBits)
      let high = low + rules.subclusterSize
      let state = rules.run(old, from: index).state
      let hasData = state == .data || state == .compressed
      if keepsHost && hasData { continue }
      if high <= written.lowerBound || low >= written.upperBound {
        if hasData { add(low, high) }
      } else {
        add(low, min(high, written.lowerBound))
        add(max(low, written.upperBound), high)
      }
    }
    return ranges
  }

  /// Gives a range of the new cluster at `target` what the old entry reads as there.
  private func copy(
    _ range: Range<UInt64>, of old: ClusterEntry, guestCluster: GuestCluster, to target: HostOffset,
    isFresh: Bool, worker: Int
  ) async throws(ImageError) {
    let guest = geometry.start(of: guestCluster)
    var next = range.lowerBound
    while next < range.upperBound {
      let index = Int(next >> UInt64(rules.subclusterBits))
      let (state, count) = rules.run(old, from: index)
      let end = min(
        range.upperBound, UInt64(index + count) << UInt64(rules.subclusterBits))
      let readsZero =
        state == .zero
        || state == .unallocated && (!hasBacking || guest.bytes + next >= size)
      if readsZero {
        // A fresh cluster has zeros already; under encryption, zeros are not what is stored.
        if !isFresh || guestData.isTransformed {
          try await writeZeroBytes(at: target + next, guest: guest + next, length: end - next)
        }
      } else {
        try await copyOld(
          old, next..<end, guest: guest, to: target, worker: worker)
      }
      next = end
    }
  }

  private func copyOld(
    _ old: ClusterEntry, _ range: Range<UInt64>, guest: GuestOffset, to target: HostOffset,
    worker: Int
  ) async throws(ImageError) {
    let buffer = IOBuffer(count: Int(min(range.upperBound - range.lowerBound, 256 << 10)))
    defer { withExtendedLifetime(buffer) {} }
    var next = range.lowerBound
    while next < range.upperBound {
      let piece = buffer.data.slice(
        0, Int(min(range.upperBound - next, UInt64(buffer.count))))
      try await readOld(old, at: next, guest: guest, into: piece, worker: worker)
      try await guestData.write(from: piece, at: target + next, guest: guest + next)
      next += UInt64(piece.count)
    }
  }

  /// Reads bytes of one cluster through `entry`, which has the same state all over the range.
  private func readOld(
    _ entry: ClusterEntry, at start: UInt64, guest: GuestOffset, into data: DataBuffer,
    worker: Int
  ) async throws(ImageError) {
    let state = rules.run(entry, from: Int(start >> UInt64(rules.subclusterBits))).state
    switch (state, rules.hostCluster(entry)) {
    case (.data, let host?):
      guard rules.isPlaced(host, guest) else {
        throw mapping.badEntry(entry, cluster: geometry.cluster(of: guest))
      }
      try await guestData.read(into: data, at: host + start, guest: guest + start)
    case (.compressed, _):
      try await reader.readCompressed(
        CompressedDescriptor(entry.descriptor, geometry), from: start, into: data, worker: worker)
    case (.unallocated, _):
      try await reader.readBacking(into: data, at: guest + start, worker: worker)
    case (.zero, _): try await storage.fillWithZeroes(data)
    default: throw mapping.badEntry(entry, cluster: geometry.cluster(of: guest))
    }
  }

  /// Writes zeros as data: for parts of clusters, where punching gains nothing.
  func writeZeroBytes(
    at offset: HostOffset, guest: GuestOffset, length: UInt64
  ) async throws(ImageError) {
    var done: UInt64 = 0
    while done < length {
      let count = min(length - done, UInt64(zeroes.count))
      try await guestData.write(
        from: zeroes.data.slice(0, Int(count)), at: offset + done, guest: guest + done)
      done += count
    }
  }
}
