import BlockCore
import QCOW2Format

/// The way of extended L2 entries from what the host file has to a new state, one half at a time.
///
/// Of the 16 bytes of an entry the disk may write 8 without the other 8 (docs/design.md, section 4, rule 8).
/// An entry of which both halves change goes through two states in between, with a barrier after
/// each: old descriptor and ``bitmap(from:to:)``, then new descriptor and that bitmap. Each subcluster
/// reads as before or as after in all of them. A new cluster costs one of the two; entries that
/// change in one half cost none.
final class SplitEntries {
  /// The states in between.
  enum Step: CaseIterable {
    case oldDescriptor, newDescriptor
  }

  private let batch: WriteBackBatch
  /// What the host file has now, slice after slice.
  private let disk: IOBuffer

  init(_ batch: WriteBackBatch) {
    self.batch = batch
    disk = IOBuffer(count: batch.byteCount)
  }

  private func onDisk(_ index: Int) -> DataBuffer {
    disk.data.slice(index * batch.sliceSize, batch.sliceSize)
  }

  /// Reads what the host file has; nobody else writes there while a round runs.
  func readOld(from storage: ImageStorage) async throws(ImageError) {
    for index in 0..<batch.sliceCount {
      try unsafe await storage.read(into: onDisk(index), at: batch.slice(index).at)
    }
  }

  /// Writes the slices that have entries to bring to a step.
  ///
  /// - Returns: whether there were any.
  func write(_ step: Step, to storage: ImageStorage) async throws(ImageError) -> Bool {
    var hasWritten = false
    for index in 0..<batch.sliceCount {
      let slice = unsafe batch.slice(index)
      let old = unsafe disk.base + index * batch.sliceSize
      guard unsafe advance(old, towards: slice.bytes, step) else { continue }
      try unsafe await storage.write(from: onDisk(index), at: slice.at)
      hasWritten = true
    }
    return hasWritten
  }

  /// Takes the entries of one slice to a step; false if none was to be changed.
  private func advance(
    _ old: UnsafeMutableRawPointer, towards new: UnsafeMutableRawPointer, _ step: Step
  ) -> Bool {
    var isChanged = false
    for position in stride(from: 0, to: batch.sliceSize, by: 16) {
      let before = unsafe Self.entry(old + position)
      let after = unsafe Self.entry(new + position)
      if before.descriptor == after.descriptor || before.bitmap == after.bitmap { continue }
      switch step {
      case .oldDescriptor:
        let bitmap = Self.bitmap(from: before, to: after)
        if bitmap == before.bitmap { continue }
        unsafe old.storeBE64(bitmap.raw, position + 8)
      case .newDescriptor:
        unsafe old.storeBE64(after.descriptor.raw, position)
      }
      isChanged = true
    }
    return isChanged
  }

  private static func entry(_ bytes: UnsafeMutableRawPointer) -> ClusterEntry {
    unsafe ClusterEntry(L2Entry(raw: bytes.be64(0)), SubclusterBitmap(raw: bytes.be64(8)))
  }

  /// The bitmap with which both descriptors read, in each subcluster, as the old or the new entry.
  ///
  /// A subcluster without data in the new entry is as there: no descriptor matters to it. One with
  /// data in the new entry is as in the old one, where it either has data, too (which was copied), or
  /// needs no descriptor. The bitmap of a compressed cluster is not looked at.
  static func bitmap(from old: ClusterEntry, to new: ClusterEntry) -> SubclusterBitmap {
    if old.descriptor.kind(hasZeroFlag: false) == .compressed { return new.bitmap }
    if new.descriptor.kind(hasZeroFlag: false) == .compressed { return old.bitmap }
    let data = new.bitmap.allocated
    return SubclusterBitmap(
      allocated: data & old.bitmap.allocated,
      zero: (old.bitmap.zero & data) | (new.bitmap.zero & ~data))
  }
}
