/// How often each host cluster is referred to, and as what.
///
/// Sparse: memory is taken, two bytes for each cluster, only for pages of 4096 clusters of which at
/// least one is referred to, and never for clusters beyond the count given at the start [CHK-2].
/// Counts saturate at 2^64 - 1.
@safe
struct ReferenceMap: ~Copyable {
  /// Bits 0 to 11: the count; bits 12 to 15: the ``HostUse``.
  private typealias Cell = UInt16
  private static let pageBits: UInt64 = 12
  private static let countBits: UInt64 = 12
  /// A count that does not fit: it is in `large`.
  private static let isLarge: UInt64 = (1 << countBits) - 1

  /// The number of clusters; all others are ignored.
  let clusterCount: UInt64
  private var pages: [UnsafeMutablePointer<Cell>?]
  private var large: [UInt64: UInt64] = [:]

  /// - Parameter clusterCount: At most 2^31, checked by the caller: the page list has 2^19 entries.
  init(clusterCount: UInt64) {
    self.clusterCount = clusterCount
    let pageCount = (clusterCount >> Self.pageBits) + 1
    unsafe pages = unsafe Array(repeating: nil, count: Int(pageCount))
  }

  deinit {
    unsafe pages.forEach { unsafe $0?.deallocate() }
  }

  /// Adds `times` references to a cluster.
  ///
  /// - Returns: The use that the cluster had before; ``HostUse/nothing`` for the first reference.
  mutating func add(_ use: HostUse, to cluster: UInt64, times: UInt64 = 1) -> HostUse {
    guard cluster < clusterCount else { return .nothing }
    let cell = unsafe page(of: cluster) + Int(cluster & ((1 << Self.pageBits) - 1))
    let before = unsafe HostUse(rawValue: UInt8(cell.pointee >> Self.countBits)) ?? .conflict
    let (sum, overflow) = unsafe count(cell.pointee, cluster).addingReportingOverflow(times)
    let count = overflow ? UInt64.max : sum
    if count >= Self.isLarge { large[cluster] = count }
    let stored = Cell(min(count, Self.isLarge))
    unsafe cell.pointee = stored | Cell(use.rawValue) << Self.countBits
    return before
  }

  /// Marks a cluster as used in ways that exclude each other; it has references already.
  mutating func markConflict(_ cluster: UInt64) {
    _ = add(.conflict, to: cluster, times: 0)
  }

  /// The number of references to a cluster.
  func count(of cluster: UInt64) -> UInt64 {
    guard cluster < clusterCount, let page = unsafe pages[Int(cluster >> Self.pageBits)] else {
      return 0
    }
    return unsafe count(page[Int(cluster & ((1 << Self.pageBits) - 1))], cluster)
  }

  /// What a cluster is used for; the last use that was added, or ``HostUse/conflict``.
  func use(of cluster: UInt64) -> HostUse {
    guard cluster < clusterCount, let page = unsafe pages[Int(cluster >> Self.pageBits)] else {
      return .nothing
    }
    let cell = unsafe page[Int(cluster & ((1 << Self.pageBits) - 1))]
    return HostUse(rawValue: UInt8(cell >> Self.countBits)) ?? .conflict
  }

  /// The first cluster at or after `cluster` that may have references; nil if there is none.
  func nextTouched(from cluster: UInt64) -> UInt64? {
    guard cluster < clusterCount else { return nil }
    let index = Int(cluster >> Self.pageBits)
    if unsafe pages[index] != nil { return cluster }
    guard let found = unsafe pages[index...].firstIndex(where: { unsafe $0 != nil }) else {
      return nil
    }
    return UInt64(found) << Self.pageBits
  }

  /// The first cluster at or after `cluster` that has references; nil if there is none.
  func nextReferenced(from cluster: UInt64) -> UInt64? {
    var position = cluster
    while let touched = nextTouched(from: position) {
      let end = min((touched | ((1 << Self.pageBits) - 1)) + 1, clusterCount)
      if let found = (touched..<end).first(where: { count(of: $0) > 0 }) { return found }
      position = end
    }
    return nil
  }

  private func count(_ cell: Cell, _ cluster: UInt64) -> UInt64 {
    let stored = UInt64(cell) & Self.isLarge
    return stored == Self.isLarge ? large[cluster] ?? stored : stored
  }

  private mutating func page(of cluster: UInt64) -> UnsafeMutablePointer<Cell> {
    let index = Int(cluster >> Self.pageBits)
    if let page = unsafe pages[index] { return unsafe page }
    let page = UnsafeMutablePointer<Cell>.allocate(capacity: 1 << Int(Self.pageBits))
    unsafe page.initialize(repeating: 0, count: 1 << Int(Self.pageBits))
    unsafe pages[index] = unsafe page
    return unsafe page
  }
}
