import BlockCore
import QCOW2Format

extension HeaderEditor {
  /// Finds a place for a name of the backing file, and writes it there, durably; nothing points there yet.
  ///
  /// - Throws: ``ImageError/headerFull`` if there is no place.
  func prepareBackingFile(
    _ name: String, format: String?, clusterSize: Int
  ) async throws(ImageError) -> BackingNameChange {
    await mutex.acquire()
    defer { mutex.release() }
    let (change, cluster) = try await plan(name, format: format, clusterSize: clusterSize)
    let changed = cluster.withMutableBytes { change.prepare(&$0) }
    if changed.isEmpty { return change }
    // Whole sectors, as all writes of the header are.
    let start = changed.lowerBound & ~511
    let end = (changed.upperBound + 511) & ~511
    try await storage.write(
      from: cluster.data.slice(start, end - start), at: HostOffset(UInt64(start)))
    withExtendedLifetime(cluster) {}
    try await storage.sync()
    return change
  }

  /// Throws ``ImageError/headerFull`` if there is no place for a name of the backing file; writes nothing.
  func requireRoom(
    forBackingFile name: String, format: String?, clusterSize: Int
  ) async throws(ImageError) {
    await mutex.acquire()
    defer { mutex.release() }
    _ = try await plan(name, format: format, clusterSize: clusterSize)
  }

  /// Finds a place in the header cluster; call with ``mutex`` held.
  private func plan(
    _ name: String, format: String?, clusterSize: Int
  ) async throws(ImageError) -> (BackingNameChange, cluster: IOBuffer) {
    mutex.assertHeld()
    let cluster = IOBuffer(count: clusterSize)
    try await storage.read(into: cluster, at: HostOffset(0))
    do {
      return (
        try cluster.withBytes { try BackingNameChange(name, format: format, in: $0) }, cluster
      )
    } catch { throw (error as? FormatError).map { .format($0) } ?? .headerFull }
  }

  /// Makes a prepared name the one in force, or none: one sector.
  func setBackingFile(_ change: BackingNameChange) async throws(ImageError) {
    try await edit { sector, header in
      change.write(into: &sector, version: header.version)
      return change.patch
    }
  }
}
