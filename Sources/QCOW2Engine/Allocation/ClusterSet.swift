import BlockCore
import Glibc
import Synchronization

/// Host clusters that hold active L2 tables or refcount blocks: what data must never overwrite.
///
/// Lookups take no lock (the hit path makes one per cluster written); changes do. Open-addressed
/// with linear probing. A removed cluster leaves a tombstone only where searches must go on; the next
/// insertion that comes by uses the place again. So the table grows with the most clusters that were
/// in the set at a time, not with the number of changes. A table that has been outgrown stays
/// allocated until the set goes away, since a reader may still be in it; all such tables together are
/// smaller than the present one.
@safe
final class ClusterSet: @unchecked Sendable {  // why: readers use atomics; `lock` orders writers
  @safe
  private struct Table {
    let slots: UnsafeMutablePointer<Atomic<UInt64>>
    let mask: Int
  }

  private static let empty: UInt64 = 0
  private static let tombstone: UInt64 = UInt64.max
  private let lock = FutexLock(.leaf)
  /// The address of the table in force; a number, since a pointer is tested for nil at each load.
  private let current: Atomic<UInt>
  private var tables: [UnsafeMutablePointer<Table>] = unsafe []
  /// Slots of the present table that are not empty, tombstones among them.
  private var used = 0

  /// - Throws: ``ImageError/noMemory(bytes:)``.
  init(minimumCapacity: Int) throws(ImageError) {
    let first = try unsafe Self.makeTable(minimumCapacity * 2)
    unsafe tables.append(first)
    current = Atomic(UInt(bitPattern: first))
  }

  deinit {
    unsafe tables.forEach { table in
      unsafe free(table.pointee.slots)
      unsafe table.deallocate()
    }
  }

  private static func makeTable(_ wanted: Int) throws(ImageError) -> UnsafeMutablePointer<Table> {
    var size = 64
    while size < wanted { size *= 2 }
    let slots: UnsafeMutablePointer<Atomic<UInt64>> = try unsafe ZeroedMemory.allocate(size)
    for index in 0..<size { unsafe (slots + index).initialize(to: Atomic(empty)) }
    let table = UnsafeMutablePointer<Table>.allocate(capacity: 1)
    unsafe table.initialize(to: Table(slots: slots, mask: size - 1))
    return unsafe table
  }

  @inline(__always) private static func home(_ cluster: UInt64) -> Int {
    Int(truncatingIfNeeded: (cluster &* 0x9e37_79b9_7f4a_7c15) >> 20)
  }

  @inline(__always) private var table: Table {
    YieldPoint.clusters.pass()
    return unsafe UnsafePointer<Table>(bitPattern: current.load(ordering: .acquiring))
      .unsafelyUnwrapped.pointee
  }

  /// Whether `cluster`, which is not the header's, is in the set.
  @inline(__always) func contains(_ cluster: HostCluster) -> Bool {
    let table = table
    var position = Self.home(cluster.number) & table.mask
    while true {
      YieldPoint.clusters.pass()
      let value = unsafe table.slots[position].load(ordering: .relaxed)
      if value == Self.empty { return false }
      if value == cluster.number { return true }
      position = (position &+ 1) & table.mask
    }
  }

  /// - Returns: whether the cluster was not in the set before.
  @discardableResult
  func insert(_ cluster: HostCluster) -> Bool {
    lock.withLock {
      if contains(cluster) { return false }
      if (used + 1) * 2 > table.mask { grow() }
      // A set that lacks a table would let data be written over it: better no program than that. The one
      // empty place that is left is where searches end.
      if used == table.mask { fatalError("no memory for a set of \(used) clusters") }
      place(cluster.number, in: table)
      return true
    }
  }

  func remove(_ cluster: HostCluster) {
    lock.withLock {
      let table = table
      var position = Self.home(cluster.number) & table.mask
      while true {
        YieldPoint.clusters.pass()
        let value = unsafe table.slots[position].load(ordering: .relaxed)
        if value == Self.empty { return }
        if value == cluster.number { break }
        position = (position + 1) & table.mask
      }
      YieldPoint.clusters.pass()
      unsafe table.slots[position].store(Self.tombstone, ordering: .relaxed)
      clearTombstones(upTo: position, table)
    }
  }

  /// Empties the tombstones that end at `position`, if no search goes on behind them.
  private func clearTombstones(upTo position: Int, _ table: Table) {
    let next = unsafe table.slots[(position + 1) & table.mask].load(ordering: .relaxed)
    guard next == Self.empty else { return }
    var position = position
    while unsafe table.slots[position].load(ordering: .relaxed) == Self.tombstone {
      YieldPoint.clusters.pass()
      unsafe table.slots[position].store(Self.empty, ordering: .relaxed)
      used -= 1
      position = (position - 1) & table.mask
    }
  }

  /// Puts a cluster that is not in the table into the first place that its search comes by.
  private func place(_ cluster: UInt64, in table: Table) {
    var position = Self.home(cluster) & table.mask
    while true {
      YieldPoint.clusters.pass()
      let value = unsafe table.slots[position].load(ordering: .relaxed)
      if value == Self.empty { used += 1 }
      if value == Self.empty || value == Self.tombstone { break }
      position = (position + 1) & table.mask
    }
    YieldPoint.clusters.pass()
    unsafe table.slots[position].store(cluster, ordering: .relaxed)
  }

  /// The slots of all tables that are allocated; for tests.
  var slotCount: Int {
    lock.withLock { unsafe tables.reduce(0) { unsafe $0 + $1.pointee.mask + 1 } }
  }

  /// Doubles the table; without memory for that it stays as it is, and fills up.
  private func grow() {
    let old = table
    guard let bigger = unsafe try? Self.makeTable((old.mask + 1) * 2) else { return }
    used = 0
    for index in 0...old.mask {
      let value = unsafe old.slots[index].load(ordering: .relaxed)
      if value != Self.empty && value != Self.tombstone { unsafe place(value, in: bigger.pointee) }
    }
    unsafe tables.append(bigger)
    YieldPoint.clusters.pass()
    current.store(UInt(bitPattern: bigger), ordering: .releasing)
  }
}
