import BlockCore
import QCOW2Format

/// The pointers in the first cluster of an image that a compaction changes.
enum CompactHeader {
  /// Where the offset stands in the data of an extension.
  private static func field(_ kind: HeaderExtension.Kind) -> Int { kind == .bitmaps ? 16 : 0 }

  private static func position(_ head: HeaderCluster, _ kind: HeaderExtension.Kind) -> Int? {
    head.last(kind).map { $0.offset + field(kind) }
  }

  /// Whether the offset in an extension lies in one sector, so that a power cut cannot tear it.
  static func canPoint(_ head: HeaderCluster, _ kind: HeaderExtension.Kind) -> Bool {
    position(head, kind).map { $0 & 511 <= 504 } ?? true
  }

  /// Points the header at what has moved; each pointer changes by itself, as all lead to the same as before.
  static func change(
    _ file: any WritableImageBytes, _ head: HeaderCluster, _ relocation: Relocation
  ) throws(ToolError) {
    let header = head.header
    var patches: [HeaderPatch] = []
    if header.l1Size > 0, let target = relocation.target(of: HostOffset(header.l1TableOffset)) {
      patches.append(.l1Table(target, entries: header.l1Size))
    }
    if header.snapshotCount > 0,
      let target = relocation.target(of: HostOffset(header.snapshotsOffset))
    {
      patches.append(.snapshotTable(target))
    }
    if !patches.isEmpty { try HeaderSector(file).change { _ in patches } }
    if let pointer = head.encryptionHeader, header.cryptMethod == 2 {
      try point(file, head, .encryptionHeader, relocation.target(of: pointer.offset))
    }
    if case .success(let location) = head.trustedBitmaps {
      try point(file, head, .bitmaps, relocation.target(of: location.directory))
    }
  }

  private static func point(
    _ file: any WritableImageBytes, _ head: HeaderCluster, _ kind: HeaderExtension.Kind,
    _ target: HostOffset?
  ) throws(ToolError) {
    guard let target, let position = position(head, kind) else { return }
    let start = HostOffset(UInt64(position & ~511))
    let sector = try file.block(at: start, count: HeaderPatch.sectorLength)
    sector.storeBE64(target.bytes, position & 511)
    try unsafe file.write(sector.bytes, at: start)
    withExtendedLifetime(sector) {}
  }
}
