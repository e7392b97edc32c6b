import BlockCore
import QCOW2Codec
import QCOW2Format

/// Copies to the new places what has no pointers in it: data of the guest and of bitmaps, and the LUKS header.
struct DataMoves {
  let file: any WritableImageBytes
  let scan: RefcountScan
  let relocation: Relocation
  /// What the guest's data is encrypted with, if that depends on its place in the file.
  let cipher: (any SectorCipher)?
  /// Called with the bytes that have been copied.
  let step: (UInt64) throws(ToolError) -> Void

  /// The bytes that are copied at once, at most.
  private static let pieceBytes: UInt64 = 2 << 20

  private var geometry: ClusterGeometry { scan.geometry }

  func copy() throws(ToolError) {
    var next = 0
    while next < relocation.moves.count {
      let count = run(from: next)
      let (source, target) = relocation.moves[next]
      if !isTable(source) {
        try copy(
          geometry.start(of: source), to: geometry.start(of: target),
          bytes: UInt64(count) << UInt64(geometry.clusterBits), isGuestData: isGuestData(source))
      }
      next += count
    }
    for piece in relocation.compressed {
      let sector = piece.offset.bytes & ~511
      try copy(
        HostOffset(sector), to: HostOffset(piece.target.bytes & ~511),
        bytes: UInt64(piece.sectors.count) << 9, isGuestData: false)
    }
  }

  /// How many moves from one on are copied at once.
  private func run(from start: Int) -> Int {
    let moves = relocation.moves
    let most = max(1, Int(Self.pieceBytes >> UInt64(geometry.clusterBits)))
    var count = 1
    while count < most, start + count < moves.count,
      moves[start + count].source == moves[start].source + UInt64(count),
      moves[start + count].target == moves[start].target + UInt64(count),
      isTable(moves[start + count].source) == isTable(moves[start].source),
      isGuestData(moves[start + count].source) == isGuestData(moves[start].source)
    {
      count += 1
    }
    return count
  }

  private func isGuestData(_ cluster: HostCluster) -> Bool {
    scan.check.references.use(of: cluster) == .guestData
  }

  /// Whether ``TableMoves`` writes the cluster.
  private func isTable(_ cluster: HostCluster) -> Bool {
    switch scan.check.references.use(of: cluster) {
    case .guestData, .bitmapData, .encryptionHeader: false
    default: true
    }
  }

  private func copy(
    _ source: HostOffset, to target: HostOffset, bytes: UInt64, isGuestData: Bool
  ) throws(ToolError) {
    let buffer = try file.block(at: source, count: Int(bytes))
    defer { withExtendedLifetime(buffer) {} }
    guard isGuestData, let cipher else {
      try unsafe file.write(buffer.bytes, at: target)
      return try step(bytes)
    }
    let encrypted = IOBuffer(count: buffer.count)
    unsafe cipher.decrypt(buffer.base, count: buffer.count, firstSector: source.bytes >> 9)
    unsafe cipher.encrypt(
      buffer.base, into: encrypted.base, count: buffer.count, firstSector: target.bytes >> 9)
    try unsafe file.write(encrypted.bytes, at: target)
    withExtendedLifetime(encrypted) {}
    try step(bytes)
  }
}
