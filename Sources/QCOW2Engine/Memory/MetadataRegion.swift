/// What a region of ``MetadataMemory`` holds.
///
/// The numbers are part of the layout: a new kind gets a new one.
enum MetadataKind: UInt32, CaseIterable {
  /// ``CacheSlot``s of L2 slices; slot n has slice n of ``l2Slices``.
  case l2Slots = 1
  case l2Slices = 2
  /// The same for slices of refcount blocks.
  case refcountSlots = 3
  case refcountSlices = 4
  /// A ``DiskTable``: entries, and the marks of its sectors.
  case l1Table = 5
  case refcountTable = 6
  /// ``ArenaRecords``.
  case arenas = 7
  /// ``BitmapWords``.
  case bitmapBits = 8
}

/// A piece of ``MetadataMemory``: zeros at first, and memory only where it has been touched.
///
/// Valid until it is given back, or its memory ends.
@safe
struct MetadataRegion: @unchecked Sendable {  // why: an address; its user guards what lies there
  let base: UnsafeMutableRawPointer
  let byteCount: Int
  /// Its place in the table of regions.
  let number: Int
  #if DEBUG
    /// Outlives the region.
    unowned(unsafe) let memory: MetadataMemory
  #endif

  /// The address of `count` values, `offset` bytes into the region.
  func values<T: ~Copyable>(
    _ type: T.Type, at offset: Int, count: Int
  ) -> UnsafeMutablePointer<T> {
    precondition(
      offset >= 0 && offset % MemoryLayout<T>.alignment == 0
        && offset + count * MemoryLayout<T>.stride <= byteCount,
      "values outside their region")
    return unsafe (base + offset).bindMemory(to: type, capacity: count)
  }

  /// Says that one store into the region has been made: each is a moment at which the process may die.
  ///
  /// Only tests listen, and only debug builds call.
  @inline(__always) func noteStore() {
    #if DEBUG
      unsafe memory.afterStore?()
    #endif
  }
}
