import BlockCore
package import QCOW2Format

/// The snapshot table as a whole.
package struct SnapshotList: Equatable, Sendable {
  package let snapshots: [Snapshot]
  /// The bytes from the start of the first to the end of the last entry.
  package let length: UInt64

  /// Reads the table; its limits are QEMU's.
  ///
  /// With `takesAnyExtraData`, entries with more extra data than the limit are read as well.
  package init(
    reading bytes: any ImageBytes, _ head: HeaderCluster, takesAnyExtraData: Bool = false
  ) throws(ToolError) {
    let start = HostOffset(head.header.snapshotsOffset)
    var table = SnapshotTableReader(
      count: head.header.snapshotCount,
      mostExtraLength: takesAnyExtraData ? UInt32.max : SnapshotEntry.mostExtraLength)
    while let wanted = table.wanted {
      let block = try bytes.block(at: start + wanted.position, count: wanted.count)
      do throws(FormatError) {
        try block.withBytes { bytes throws(FormatError) in try table.take(bytes) }
      } catch { throw .format(error) }
    }
    snapshots = table.snapshots
    length = table.length
  }
}
