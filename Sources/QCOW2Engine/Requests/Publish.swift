import BlockCore
import QCOW2Format

extension Writer {
  /// Points the entries of a fill at its run, and lets go of what they pointed at before.
  func publish(_ fill: ClusterFill, _ table: HostOffset) async throws(ImageError) {
    let lookup = mapping.lookup
    let released = try await mapping.withEntries(fill.part, table: table) { entries in
      var released: [ClusterRun] = []
      for index in 0..<Int(fill.run.count) {
        let new = self.filled(
          entries[index], at: self.geometry.start(of: fill.run.start + UInt64(index)),
          written: fill.written(index))
        entries.link(index, to: new, lookup, released: &released)
      }
      return released
    }
    frees.add(released)
    durability.noteDirty()
    durability.health.noteSpaceFound(by: .allocation)
  }

  /// The entry once `written` bytes of its cluster, and what ``rangesToCopy(_:written:keepsHost:)``
  /// says, are at `host`.
  private func filled(
    _ old: ClusterEntry, at host: HostOffset, written: Range<UInt64>
  ) -> ClusterEntry {
    if !rules.isExtended { return rules.entry(host: host, allocated: 0, zero: 0) }
    if old.descriptor.kind(hasZeroFlag: false) == .compressed {
      return rules.entry(host: host, allocated: .max, zero: 0)
    }
    let allocated = old.bitmap.allocated | mask(covering: written)
    return rules.entry(host: host, allocated: allocated, zero: old.bitmap.zero & ~allocated)
  }

  /// The subclusters that a range of a cluster's bytes touches.
  func mask(covering range: Range<UInt64>) -> UInt32 {
    let low = range.lowerBound >> UInt64(rules.subclusterBits)
    let high = (range.upperBound + rules.subclusterSize - 1) >> UInt64(rules.subclusterBits)
    return Self.mask(Int(low)..<Int(high))
  }

  static func mask(_ subclusters: Range<Int>) -> UInt32 {
    let count = subclusters.count
    let ones: UInt32 = count >= 32 ? .max : (1 << UInt32(count)) &- 1
    return ones << UInt32(subclusters.lowerBound)
  }
}
