import BlockCore
import QCOW2Format

/// The COPIED flags of the active disk: set where there is exactly one reference, else clear.
struct CopiedFlags {
  /// Which flags to correct.
  enum Fix {
    case all
    /// Only those that are set and must not be: always safe.
    case clearing
  }

  private static let chunk = 1 << 17  // entries: 1 MiB

  private let file: any WritableImageBytes
  private let scan: RefcountScan
  private let geometry: ClusterGeometry
  private let head: ImageHead

  init(_ file: any WritableImageBytes, _ scan: RefcountScan) {
    self.file = file
    self.scan = scan
    geometry = scan.geometry
    head = scan.check.head
  }

  /// How many flags ``fix(_:)`` would change.
  func countWrong(_ fix: Fix) throws(ToolError) -> UInt64 { try walk(fix, writes: false) }

  /// Corrects the flags.
  ///
  /// - Returns: how many were wrong.
  func fix(_ fix: Fix) throws(ToolError) -> UInt64 { try walk(fix, writes: true) }

  private func walk(_ fix: Fix, writes: Bool) throws(ToolError) -> UInt64 {
    var tables: Set<HostOffset> = []
    var count = try walkL1(fix, writes, &tables)
    let buffer = IOBuffer(count: Int(geometry.clusterSize))
    for table in tables.sorted() { count += try walkL2(table, buffer, fix, writes) }
    return count
  }

  private func walkL1(
    _ fix: Fix, _ writes: Bool, _ tables: inout Set<HostOffset>
  ) throws(ToolError) -> UInt64 {
    let start = HostOffset(head.header.l1TableOffset)
    let entries = Int(head.header.l1Size)
    var count: UInt64 = 0
    var done = 0
    while done < entries && start.bytes + UInt64(done) * 8 < head.fileLength {
      let part = min(Self.chunk, entries - done)
      let place = start + UInt64(done) * 8
      let buffer = try file.block(at: place, count: part * 8)
      count += try correct(buffer, count: part, step: 8, at: place, fix, writes) { raw, _ in
        guard let table = L1Entry(raw: raw).l2Table, isInFile(table) else { return nil }
        tables.insert(table)
        return hasOneReference(table)
      }
      done += part
    }
    return count
  }

  private func walkL2(
    _ table: HostOffset, _ buffer: IOBuffer, _ fix: Fix, _ writes: Bool
  ) throws(ToolError) -> UInt64 {
    try file.read(into: buffer, count: buffer.count, at: table)
    let features = head.header.incompatible
    let hasDataFile = features.contains(.externalDataFile)
    let hasZeroFlag = head.header.hasZeroFlag && !features.contains(.extendedL2)
    return try correct(
      buffer, count: Int(geometry.l2Entries), step: 1 << geometry.l2EntryBits, at: table, fix,
      writes
    ) { raw, _ in
      let entry = L2Entry(raw: raw)
      if entry.kind(hasZeroFlag: hasZeroFlag) == .compressed { return false }
      // In a data file, an entry may lead to offset 0, and only the flag tells.
      if hasDataFile { return entry.hostCluster != nil || entry.isCopied ? true : nil }
      guard let cluster = entry.hostCluster, isInFile(cluster) else { return nil }
      return hasOneReference(cluster)
    }
  }

  /// Gives each entry the flag that `wanted` names; nil leaves it alone.
  private func correct(
    _ buffer: IOBuffer, count: Int, step: Int, at place: HostOffset, _ fix: Fix, _ writes: Bool,
    _ wanted: (UInt64, Int) -> Bool?
  ) throws(ToolError) -> UInt64 {
    let flag: UInt64 = 1 << 63
    var wrong: UInt64 = 0
    var changed: Range<Int>?
    for index in 0..<count {
      let raw = buffer.be64(index * step)
      guard raw != 0, let isWanted = wanted(raw, index), isWanted != (raw & flag != 0),
        fix == .all || !isWanted
      else { continue }
      wrong += 1
      unsafe buffer.base.storeBE64(raw ^ flag, index * step)
      changed = (changed?.lowerBound ?? index * step)..<(index * step + 8)
    }
    if writes, let changed {
      let first = changed.lowerBound & ~511
      let length = min((changed.upperBound + 511) & ~511, buffer.count) - first
      let bytes = unsafe UnsafeRawBufferPointer(start: buffer.base + first, count: length)
      try unsafe file.write(bytes, at: place + UInt64(first))
      withExtendedLifetime(buffer) {}
    }
    return wrong
  }

  private func hasOneReference(_ offset: HostOffset) -> Bool {
    scan.references(geometry.hostCluster(of: offset)) == 1
  }

  /// Whether an entry leads to something that can be followed.
  private func isInFile(_ offset: HostOffset) -> Bool {
    offset.bytes & geometry.clusterMask == 0 && offset.bytes < head.fileLength
  }
}
