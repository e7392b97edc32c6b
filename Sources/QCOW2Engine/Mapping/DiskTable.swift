import BlockCore
import Glibc
import QCOW2Format
import Synchronization

/// A table that lives in memory as a whole: the L1 table or the refcount table.
///
/// Entries are atomic words in the machine's byte order; any thread may read one at any time.
/// A change marks the 512-byte sector of the entry dirty; ``FlushCoordinator`` writes such sectors
/// back. Only one task writes a given entry at a time: the holder of its in-flight range.
@safe
final class DiskTable: @unchecked Sendable {  // why: atomics in stable storage
  /// Entries in one sector, the unit of write-back.
  static let entriesPerSector = 64

  let offset: HostOffset
  /// The number of entries, without the padding of the last sector.
  let count: Int
  private let sectors: Int
  private let entries: UnsafeMutablePointer<Atomic<UInt64>>
  private let dirty: UnsafeMutablePointer<Atomic<UInt64>>
  /// A bit per entry: see ``isStored(_:at:)``.
  private let stored: UnsafeMutablePointer<Atomic<UInt64>>

  /// - Parameters:
  ///   - offset: Where the table starts in the host file; a cluster boundary.
  ///   - bytes: The table as it is on the host file, `count` big-endian entries or more.
  ///   - count: The number of entries.
  /// - Throws: ``ImageError/noMemory(bytes:)``.
  init(offset: HostOffset, bytes: UnsafeRawBufferPointer, count: Int) throws(ImageError) {
    self.offset = offset
    self.count = count
    sectors = (count + Self.entriesPerSector - 1) / Self.entriesPerSector
    let padded = max(sectors, 1) * Self.entriesPerSector
    let entries: UnsafeMutablePointer<Atomic<UInt64>> = try unsafe ZeroedMemory.allocate(padded)
    let words = sectors / 64 + 1
    do throws(ImageError) {
      // One bit per sector in `dirty`, one per entry in `stored`: all in one supply.
      unsafe dirty = try unsafe ZeroedMemory.allocate(words + sectors + 1)
    } catch {
      unsafe free(entries)
      throw error
    }
    unsafe stored = unsafe dirty + words
    for index in 0...sectors { unsafe (stored + index).initialize(to: Atomic(0)) }
    unsafe self.entries = unsafe entries
    for index in 0..<padded {
      let value =
        unsafe (index + 1) * 8 <= bytes.count
        ? bytes.baseAddress.map { unsafe $0.be64(index * 8) } ?? 0 : 0
      unsafe (entries + index).initialize(to: Atomic(value))
    }
    for index in 0..<words { unsafe (dirty + index).initialize(to: Atomic(0)) }
  }

  deinit {
    unsafe free(entries)
    unsafe free(dirty)
  }

  @inline(__always) func load(_ index: Int) -> UInt64 {
    unsafe entries[index].load(ordering: .acquiring)
  }

  /// The address of the entries, for ``load(_:at:)``; valid as long as the table is.
  var address: UInt { unsafe UInt(bitPattern: entries) }

  /// The entry at `index` of the table with an ``address``, without touching the object.
  @unsafe @inline(__always) static func load(_ index: Int, at address: UInt) -> UInt64 {
    unsafe UnsafePointer<Atomic<UInt64>>(bitPattern: address).unsafelyUnwrapped[index].load(
      ordering: .acquiring)
  }

  /// The address of the bits of ``isStored(_:at:)``; valid as long as the table is.
  var storedAddress: UInt { unsafe UInt(bitPattern: stored) }

  /// Whether all bytes of the cluster that the entry at `index` points at are known to have the host's
  /// storage.
  ///
  /// `address` is a ``storedAddress``.
  @unsafe @inline(__always) static func isStored(_ index: Int, at address: UInt) -> Bool {
    let words = unsafe UnsafePointer<Atomic<UInt64>>(bitPattern: address).unsafelyUnwrapped
    return unsafe words[index / 64].load(ordering: .acquiring) >> UInt64(index % 64) & 1 != 0
  }

  /// Notes that the cluster that the entry at `index` points at has the host's storage.
  func noteStored(_ index: Int) {
    unsafe stored[index / 64].bitwiseOr(1 << UInt64(index % 64), ordering: .releasing)
  }

  /// The number of entries that are not zero.
  func countUsed() -> Int {
    var used = 0
    for index in 0..<count where load(index) != 0 { used += 1 }
    return used
  }

  /// Changes an entry and marks its sector dirty, in that order.
  func store(_ value: UInt64, at index: Int) {
    assert(index >= 0 && index < count, "an entry behind the end of its table is changed")
    unsafe entries[index].store(value, ordering: .releasing)
    markDirty(sector: index / Self.entriesPerSector)
  }

  /// Changes an entry in memory only; the table must never be written back.
  func poison(_ value: UInt64, at index: Int) {
    unsafe entries[index].store(value, ordering: .releasing)
  }

  private func markDirty(sector: Int) {
    unsafe dirty[sector / 64].bitwiseOr(1 << UInt64(sector % 64), ordering: .acquiringAndReleasing)
  }

  /// Whether any sector was dirty at some recent moment.
  var hasDirty: Bool {
    for word in 0...(sectors / 64) where unsafe dirty[word].load(ordering: .relaxed) != 0 {
      return true
    }
    return false
  }

  /// The dirty sectors, each copied after its mark was taken away: a later change marks it again.
  func takeDirty() -> [TableSector] {
    var taken: [TableSector] = []
    for word in 0...(sectors / 64) where unsafe dirty[word].load(ordering: .relaxed) != 0 {
      var bits = unsafe dirty[word].exchange(0, ordering: .acquiringAndReleasing)
      while bits != 0 {
        taken.append(copy(sector: word * 64 + bits.trailingZeroBitCount))
        bits &= bits &- 1
      }
    }
    return taken
  }

  /// Marks sectors dirty again after their write-back failed.
  func restoreDirty(_ sectors: [TableSector]) {
    for sector in sectors { markDirty(sector: sector.index) }
  }

  private func copy(sector: Int) -> TableSector {
    let buffer = IOBuffer(count: 512)
    for entry in 0..<Self.entriesPerSector {
      unsafe buffer.base.storeBE64(load(sector * Self.entriesPerSector + entry), entry * 8)
    }
    return TableSector(index: sector, at: offset + UInt64(sector) * 512, buffer: buffer)
  }
}

/// A copy of one dirty sector of a table, on its way to the host file.
struct TableSector: Sendable {
  let index: Int
  let at: HostOffset
  let buffer: IOBuffer
}
