import BlockCore
import QCOW2Format
import Synchronization

/// A table that lives in memory as a whole: the L1 table or the refcount table.
///
/// Entries are atomic words in the machine's byte order; any thread may read one at any time.
/// A change marks the 512-byte sector of the entry dirty; ``FlushCoordinator`` writes such sectors
/// back. Only one task writes a given entry at a time: the holder of its in-flight range.
///
/// A region of ``MetadataMemory`` has the entries, two marks of each sector (*dirty*, *writing*), and a bit
/// of each entry (*stored*). Whenever the process dies, a sector that the host file lacks has a mark:
/// - A change marks the sector dirty, then stores the entry.
/// - A round marks the sector as being written, then takes the dirty mark away, then copies. The other
///   mark goes after the copy was written; if that failed, the sector becomes dirty again before.
///
/// Both do so under `lock`: no round can take the mark between a change's mark and its store, and then
/// copy and write the old entry, so that the new one would have no mark. To mark anew after the store
/// would not do: others read the entry, and act on it, as soon as it is there, and the process may die
/// before the second mark.
@safe
final class DiskTable: @unchecked Sendable {  // why: atomics in stable storage
  /// Entries in one sector, the unit of write-back.
  static let entriesPerSector = 64

  let offset: HostOffset
  /// The number of entries, without the padding of the last sector.
  let count: Int
  private let sectors: Int
  let memory: MetadataMemory
  private let region: MetadataRegion
  /// Guards the marks, and entries that change.
  private let lock = FutexLock(.leaf)
  private let entries: UnsafeMutablePointer<Atomic<UInt64>>
  /// A bit per sector: the host file may lack it.
  private let dirty: UnsafeMutablePointer<Atomic<UInt64>>
  /// A bit per sector: a round has a copy that the host file may not have yet.
  private let writing: UnsafeMutablePointer<Atomic<UInt64>>
  /// A bit per entry: see ``isStored(_:at:)``.
  private let stored: UnsafeMutablePointer<Atomic<UInt64>>

  /// - Parameters:
  ///   - offset: Where the table starts in the host file; a cluster boundary.
  ///   - bytes: The table as it is on the host file, `count` big-endian entries or more.
  ///   - count: The number of entries.
  ///   - memory: Where the table lives from now on.
  ///   - kind: Which table it is.
  /// - Throws: ``ImageError/noMemory(bytes:)``.
  init(
    offset: HostOffset, bytes: UnsafeRawBufferPointer, count: Int, in memory: MetadataMemory,
    _ kind: MetadataKind
  ) throws(ImageError) {
    self.memory = memory
    self.offset = offset
    self.count = count
    let layout = DiskTableLayout(count: count)
    sectors = layout.sectors
    region = try memory.region(
      kind, elementSize: 8, count: max(count, 1), length: layout.words * 8, place: offset)
    unsafe entries = unsafe region.values(Atomic<UInt64>.self, at: 0, count: layout.words)
    unsafe dirty = unsafe entries + layout.dirty
    unsafe writing = unsafe entries + layout.writing
    unsafe stored = unsafe entries + layout.stored
    guard let found = bytes.baseAddress else { return }
    for index in 0..<min(layout.dirty, bytes.count / 8) {
      unsafe entries[index].store(found.be64(index * 8), ordering: .relaxed)
    }
  }

  deinit { memory.giveBack(region) }

  @inline(__always) func load(_ index: Int) -> UInt64 {
    YieldPoint.table.pass()
    return unsafe entries[index].load(ordering: .acquiring)
  }

  /// The address of the entries, for ``load(_:at:)``; valid as long as the table is.
  var address: UInt { unsafe UInt(bitPattern: entries) }

  /// The entry at `index` of the table with an ``address``, without touching the object.
  @unsafe @inline(__always) static func load(_ index: Int, at address: UInt) -> UInt64 {
    YieldPoint.table.pass()
    return unsafe UnsafePointer<Atomic<UInt64>>(bitPattern: address).unsafelyUnwrapped[index].load(
      ordering: .acquiring)
  }

  /// The address of the bits of ``isStored(_:at:)``; valid as long as the table is.
  var storedAddress: UInt { unsafe UInt(bitPattern: stored) }

  /// Whether all bytes of the cluster that the entry at `index` points at are known to have the host's
  /// storage.
  ///
  /// `address` is a ``storedAddress``.
  @unsafe @inline(__always) static func isStored(_ index: Int, at address: UInt) -> Bool {
    YieldPoint.table.pass()
    let words = unsafe UnsafePointer<Atomic<UInt64>>(bitPattern: address).unsafelyUnwrapped
    return unsafe words[index / 64].load(ordering: .acquiring) >> UInt64(index % 64) & 1 != 0
  }

  /// Notes that the cluster that the entry at `index` points at has the host's storage.
  func noteStored(_ index: Int) {
    YieldPoint.table.pass()
    unsafe stored[index / 64].bitwiseOr(1 << UInt64(index % 64), ordering: .releasing)
  }

  /// The number of entries that are not zero.
  func countUsed() -> Int {
    var used = 0
    for index in 0..<count where load(index) != 0 { used += 1 }
    return used
  }

  /// Marks the sector of an entry dirty and changes the entry, in that order.
  func store(_ value: UInt64, at index: Int) {
    assert(index >= 0 && index < count, "an entry behind the end of its table is changed")
    lock.withLock {
      unsafe set(dirty, index / Self.entriesPerSector)
      YieldPoint.table.pass()
      unsafe entries[index].store(value, ordering: .releasing)
      region.noteStore()
    }
  }

  /// Changes an entry in memory only; the table must never be written back.
  func poison(_ value: UInt64, at index: Int) {
    YieldPoint.table.pass()
    unsafe entries[index].store(value, ordering: .releasing)
  }

  private func set(_ marks: UnsafeMutablePointer<Atomic<UInt64>>, _ sector: Int) {
    YieldPoint.table.pass()
    unsafe marks[sector / 64].bitwiseOr(1 << UInt64(sector % 64), ordering: .acquiringAndReleasing)
    region.noteStore()
  }

  private func clear(_ marks: UnsafeMutablePointer<Atomic<UInt64>>, _ sector: Int) {
    YieldPoint.table.pass()
    unsafe marks[sector / 64].bitwiseAnd(
      ~(1 << UInt64(sector % 64)), ordering: .acquiringAndReleasing)
    region.noteStore()
  }

  /// Whether any sector was dirty at some recent moment.
  var hasDirty: Bool {
    for word in 0...(sectors / 64) where unsafe dirty[word].load(ordering: .relaxed) != 0 {
      return true
    }
    return false
  }

  /// Copies of the dirty sectors, which are clean from now on: a later change marks them again.
  ///
  /// The caller writes them, and then calls ``wereWritten(_:)`` or ``restoreDirty(_:)``.
  func takeDirty() -> [TableSector] {
    var taken: [TableSector] = []
    for word in 0...(sectors / 64) {
      YieldPoint.table.pass()
      var bits = unsafe dirty[word].load(ordering: .acquiring)
      while bits != 0 {
        taken.append(take(sector: word * 64 + bits.trailingZeroBitCount))
        bits &= bits &- 1
      }
    }
    return taken
  }

  /// Notes that the host file has copied sectors.
  func wereWritten(_ sectors: [TableSector]) {
    lock.withLock {
      for sector in sectors { unsafe clear(writing, sector.index) }
    }
  }

  /// Marks sectors dirty again after their write-back failed.
  func restoreDirty(_ sectors: [TableSector]) {
    lock.withLock {
      for sector in sectors {
        unsafe set(dirty, sector.index)
        unsafe clear(writing, sector.index)
      }
    }
  }

  private func take(sector: Int) -> TableSector {
    let buffer = IOBuffer(count: 512)
    lock.withLock {
      unsafe set(writing, sector)
      unsafe clear(dirty, sector)
      for entry in 0..<Self.entriesPerSector {
        unsafe buffer.base.storeBE64(load(sector * Self.entriesPerSector + entry), entry * 8)
      }
    }
    return TableSector(index: sector, at: offset + UInt64(sector) * 512, buffer: buffer)
  }
}

/// Where in the region of a ``DiskTable`` what lies, in words: the entries first, whole sectors of them.
struct DiskTableLayout {
  let sectors: Int
  /// A bit per sector.
  let dirty: Int
  /// A bit per sector.
  let writing: Int
  /// A bit per entry.
  let stored: Int
  /// The words of the region.
  let words: Int

  /// - Parameter count: the table's entries.
  init(count: Int) {
    sectors = (count + DiskTable.entriesPerSector - 1) / DiskTable.entriesPerSector
    let marks = sectors / 64 + 1
    dirty = max(sectors, 1) * DiskTable.entriesPerSector
    writing = dirty + marks
    stored = writing + marks
    words = stored + sectors + 1
  }
}

/// A copy of one dirty sector of a table, on its way to the host file.
struct TableSector: Sendable {
  let index: Int
  let at: HostOffset
  let buffer: IOBuffer
}
