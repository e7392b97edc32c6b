import BlockCore
import QCOW2Format

/// The first sector of an image, changed field by field: atomic on every disk.
struct HeaderSector {
  private let file: any WritableImageBytes

  init(_ file: any WritableImageBytes) { self.file = file }

  /// Makes durable what comes before any other write: all autoclear bits but `kept` are cleared, and the
  /// dirty bit is set if the refcounts are about to change.
  func prepareForWriting(
    keeping kept: AutoclearFeatures, marksDirty: Bool
  ) throws(ToolError) {
    try change { header in
      [header.keeping(kept)] + (marksDirty ? [header.adding(.dirty)] : [])
    }
  }

  /// Clears bits, durably.
  ///
  /// - Returns: whether any was set.
  @discardableResult func remove(_ bits: IncompatibleFeatures) throws(ToolError) -> Bool {
    try change { [$0.removing(bits)] }
  }

  /// Points the header at the planned refcount table and, if there is one, at another snapshot table,
  /// durably.
  func setRefcountTable(
    _ plan: RefcountPlan, snapshotTable: HostOffset?
  ) throws(ToolError) {
    try change { _ in (snapshotTable.map { [.snapshotTable($0)] } ?? []) + [plan.headerPatch] }
  }

  /// Points the header at another snapshot table with as many entries, durably.
  func setSnapshotTable(at offset: HostOffset) throws(ToolError) {
    try change { _ in [.snapshotTable(offset)] }
  }

  /// Makes the changes that `patches` wants of the header as it is now, durably.
  ///
  /// - Returns: Whether there were any.
  @discardableResult func change(
    _ patches: (Header) -> [HeaderPatch]
  ) throws(ToolError) -> Bool {
    let sector = try file.block(at: HostOffset(0), count: HeaderPatch.sectorLength)
    do throws(FormatError) {
      let isChanged = try sector.withMutableBytes { bytes throws(FormatError) in
        try HeaderPatch.change(&bytes, patches)
      }
      if !isChanged { return false }
    } catch { throw .format(error) }
    try unsafe file.write(sector.bytes, at: HostOffset(0))
    try file.sync()
    return true
  }

  /// Brings another header into force: what goes before, the first sector, what goes after, each durable
  /// before the next.
  func rewrite(_ rewrite: HeaderRewrite) throws(ToolError) {
    if let before = rewrite.before { try write(before) }
    try write(HeaderRewrite.Part(offset: 0, bytes: rewrite.sector))
    for part in rewrite.after { try write(part) }
  }

  private func write(_ part: HeaderRewrite.Part) throws(ToolError) {
    let buffer = IOBuffer(starting: part.bytes, count: part.bytes.count)
    try unsafe file.write(buffer.bytes, at: HostOffset(UInt64(part.offset)))
    withExtendedLifetime(buffer) {}
    try file.sync()
  }
}
