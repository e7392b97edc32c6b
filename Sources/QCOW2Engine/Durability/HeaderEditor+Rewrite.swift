import BlockCore
import QCOW2Format

extension HeaderEditor {
  /// Brings other fields and other data of one extension into force, by one write of the first sector.
  ///
  /// What the new header points at is durable already. A crash leaves the old header or the new one.
  ///
  /// - Parameters:
  ///   - patch: What the fields become.
  ///   - kind: The extension; there is one of it.
  ///   - data: What it has from now on.
  ///   - clusterSize: In bytes.
  /// - Throws: ``ImageError/headerFull``, with nothing changed, if there is no room.
  func commit(
    _ patch: HeaderPatch, replacing kind: HeaderExtension.Kind, with data: [UInt8],
    clusterSize: Int
  ) async throws(ImageError) {
    try await commit(clusterSize: clusterSize) { _ in
      patch
    } extensions: { present in
      present.map { ($0.kind, $0.kind == kind ? data : $0.data) }
    }
  }

  /// The same for any change of fields and extensions.
  private func commit(
    clusterSize: Int, _ patch: (Header) -> HeaderPatch,
    extensions change: ([(kind: HeaderExtension.Kind, data: [UInt8])]) -> [(
      kind: HeaderExtension.Kind, data: [UInt8]
    )]
  ) async throws(ImageError) {
    await mutex.acquire()
    defer { mutex.release() }
    let cluster = IOBuffer(count: clusterSize)
    try await storage.read(into: cluster, at: HostOffset(0))
    let rewrite: HeaderRewrite
    do {
      rewrite = try cluster.withBytes { bytes in
        let head = try HeaderCluster(parsing: bytes, fileLength: UInt64(bytes.count))
        var wanted = head.header
        wanted.apply(patch(head.header))
        return try HeaderRewrite(bytes, to: wanted, extensions: change(head.contents(bytes)))
      }
    } catch { throw (error as? FormatError).map { .format($0) } ?? .headerFull }
    if let before = rewrite.before { try await write(before) }
    try await writeFirstSector(
      IOBuffer(starting: rewrite.sector, count: rewrite.sector.count), rewrite.header)
    do throws(ImageError) { for part in rewrite.after { try await write(part) } } catch {
      // The new header is in force: what it lacks is names of features.
      if storage.health.hasLostSync { throw error }
    }
  }

  /// Points the bitmaps extension at another directory, which is durable already, and sets its autoclear
  /// bit; or takes both away.
  ///
  /// A crash leaves the old directory in force or the new one.
  ///
  /// - Parameters:
  ///   - target: Nil for no bitmaps.
  ///   - geometry: The image's.
  /// - Throws: With the old directory in force, unless writing has stopped altogether:
  ///   ``BitmapRefusal/headerFull``, or what failed.
  func setBitmaps(
    _ target: BitmapsExtension?, _ geometry: ClusterGeometry
  ) async throws(ImageError) {
    do throws(ImageError) {
      try await commit(clusterSize: Int(geometry.clusterSize)) { header in
        .autoclear(
          target == nil
            ? header.autoclear.subtracting(.bitmaps) : header.autoclear.union(.bitmaps))
      } extensions: { present in
        present.filter { $0.kind != .bitmaps } + (target.map { [(.bitmaps, $0.encoded)] } ?? [])
      }
    } catch {
      if case .headerFull = error { throw .bitmapRefused(.headerFull) }
      throw error
    }
  }

  private func write(_ part: HeaderRewrite.Part) async throws(ImageError) {
    let buffer = IOBuffer(starting: part.bytes, count: part.bytes.count)
    try await storage.write(from: buffer, at: HostOffset(UInt64(part.offset)))
    try await storage.sync()
  }
}
