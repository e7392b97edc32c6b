import BlockCore
import QCOW2Format

/// Writes the tables of an image with pointers to the new places.
struct TableMoves {
  let file: any WritableImageBytes
  let scan: RefcountScan
  let relocation: Relocation
  /// Called between tables.
  let step: () throws(ToolError) -> Void

  /// Which tables are written.
  enum Part {
    /// Those that move, at their new places, where nothing leads to them yet.
    case moved
    /// Those that stay.
    case staying
  }

  private var geometry: ClusterGeometry { scan.geometry }
  private var head: HeaderCluster { scan.check.head }

  func write(_ part: Part) throws(ToolError) {
    try writeL2(part)
    for table in scan.check.l1Tables {
      try write(part, at: table.offset, length: UInt64(table.entries) * 8) { buffer in
        relocate(buffer, 0..<table.entries * 8, by: relocation.pointer)
      }
    }
    try writeSnapshots(part)
    try writeBitmaps(part)
  }

  private func writeL2(_ part: Part) throws(ToolError) {
    let stepBytes = 1 << geometry.l2EntryBits
    try CompactSurvey.forEachTable(file, scan, where: { isWanted($0, part) }) {
      (buffer, _, offset) throws(ToolError) in
      try step()
      var isChanged = part == .moved
      if !scan.check.rules.hasDataFile {
        for position in stride(from: 0, to: buffer.count, by: stepBytes) {
          guard let new = relocation.entry(buffer.be64(position)) else { continue }
          buffer.storeBE64(new, position)
          isChanged = true
        }
      }
      if isChanged {
        try unsafe file.write(buffer.bytes, at: relocation.target(of: offset) ?? offset)
      }
    }
  }

  private func writeSnapshots(_ part: Part) throws(ToolError) {
    guard head.header.snapshotCount > 0 else { return }
    let list = try SnapshotList(reading: file, head)
    try write(part, at: HostOffset(head.header.snapshotsOffset), length: list.length) { buffer in
      var position = 0
      var isChanged = false
      for snapshot in list.snapshots {
        // The first field of an entry: aligned to 8 bytes, so no sector boundary tears it.
        isChanged = relocate(buffer, position..<position + 8, by: relocation.pointer) || isChanged
        position += Int(snapshot.entry.paddedLength)
      }
      return isChanged
    }
  }

  private func writeBitmaps(_ part: Part) throws(ToolError) {
    guard case .success(let location) = head.trustedBitmaps else { return }
    let items = try BitmapList.read(file, head, location)
    for item in items {
      let length = Int(item.entry.tableSize) * 8
      try write(part, at: item.entry.table, length: UInt64(length)) { buffer in
        relocate(buffer, 0..<length, by: relocation.pointer)
      }
    }
    try write(part, at: location.directory, length: location.directoryLength) { buffer in
      var isChanged = false
      for item in items {
        let position = Int(item.position)
        isChanged = relocate(buffer, position..<position + 8, by: relocation.pointer) || isChanged
      }
      return isChanged
    }
  }

  private func isWanted(_ offset: HostOffset, _ part: Part) -> Bool {
    (relocation.target(of: offset) != nil) == (part == .moved)
  }

  /// Reads a structure, has it changed, and writes whole clusters of it where it belongs.
  private func write(
    _ part: Part, at offset: HostOffset, length: UInt64, _ change: (IOBuffer) -> Bool
  ) throws(ToolError) {
    guard length > 0, isWanted(offset, part) else { return }
    try step()
    let bytes = Int(geometry.clusters(covering: length) << UInt64(geometry.clusterBits))
    let buffer = try file.block(at: offset, count: bytes)
    guard change(buffer) || part == .moved else { return }
    try unsafe file.write(buffer.bytes, at: relocation.target(of: offset) ?? offset)
    withExtendedLifetime(buffer) {}
  }

  /// - Returns: Whether any of the numbers has changed.
  private func relocate(
    _ buffer: IOBuffer, _ range: Range<Int>, by pointer: (UInt64) -> UInt64?
  ) -> Bool {
    var isChanged = false
    for position in stride(from: range.lowerBound, to: range.upperBound, by: 8) {
      guard let new = pointer(buffer.be64(position)) else { continue }
      buffer.storeBE64(new, position)
      isChanged = true
    }
    return isChanged
  }
}
