import BlockCore
import Synchronization

/// The L1 table in force: replaced as a whole when it grows.
///
/// Reading takes no lock and no reference count. A table that was replaced stays in memory until it
/// is replaced once more, so a reader that still has it reads old entries, never freed memory.
///
/// An old entry would still be wrong to act on, and a change stored into an old table would be
/// lost. So ``replace(with:)`` is called only by ``Image/exclusively(_:)``, when no request is in
/// flight, and after a flush, when no entry of the old table is dirty. Requests that come later see
/// the new table, since letting them in is ordered after the replacement. A flush round may run at
/// any time: it looks at ``table`` once, and whichever it finds, the old one has nothing left to
/// write. The flush before the next replacement begins after that round has ended: then nobody has the
/// table from before the last replacement any more.
@safe
final class ActiveL1: @unchecked Sendable {  // why: an atomic pointer; `lock` guards `kept`
  private let current: Atomic<UnsafeMutableRawPointer>
  /// Where the entries of that table are, for ``load(_:)``.
  private let entries: Atomic<UInt>
  /// The same for ``isStored(_:)``.
  private let stored: Atomic<UInt>
  private let lock = FutexLock(.leaf)
  /// The table in force and the one before it.
  private var kept: [DiskTable]

  init(_ table: DiskTable) {
    kept = [table]
    unsafe current = unsafe Atomic(Unmanaged.passUnretained(table).toOpaque())
    entries = Atomic(table.address)
    stored = Atomic(table.storedAddress)
  }

  @inline(__always) private var reference: Unmanaged<DiskTable> {
    YieldPoint.table.pass()
    return unsafe Unmanaged.fromOpaque(current.load(ordering: .acquiring))
  }

  /// The table in force at this moment.
  var table: DiskTable { unsafe reference.takeUnretainedValue() }

  @inline(__always) func load(_ index: Int) -> UInt64 {
    YieldPoint.table.pass()
    return unsafe DiskTable.load(index, at: entries.load(ordering: .acquiring))
  }

  /// Whether the L2 table of an entry is known to have the host's storage, so that its write-back needs
  /// no room.
  @inline(__always) func isStored(_ index: Int) -> Bool {
    YieldPoint.table.pass()
    return unsafe DiskTable.isStored(index, at: stored.load(ordering: .acquiring))
  }

  /// Marks the sector of an entry dirty and changes the entry, in that order.
  func store(_ value: UInt64, at index: Int) { table.store(value, at: index) }

  /// The number of entries; only ever grows.
  var count: Int { table.count }

  func replace(with table: DiskTable) {
    let unused = lock.withLock { () -> [DiskTable] in
      let unused = kept.dropLast()
      kept = [kept[kept.count - 1], table]
      return Array(unused)
    }
    YieldPoint.table.pass()
    unsafe current.store(Unmanaged.passUnretained(table).toOpaque(), ordering: .releasing)
    YieldPoint.table.pass()
    entries.store(table.address, ordering: .releasing)
    YieldPoint.table.pass()
    stored.store(table.storedAddress, ordering: .releasing)
    // Freed here, with no lock held.
    withExtendedLifetime(unused) {}
  }
}
