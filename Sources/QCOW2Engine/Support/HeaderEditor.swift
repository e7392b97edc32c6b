import BlockCore
import QCOW2Format

/// Changes single fields of the header on the host file; everything else keeps its bytes.
///
/// Each edit reads the first sector, changes one field inside it, writes the sector (atomic on
/// every disk) and makes it durable.
final class HeaderEditor: @unchecked Sendable {  // why: `mutex` guards the header copy
  private let storage: ImageStorage
  private let mutex = AsyncMutex()
  private var header: Header

  init(storage: ImageStorage, header: Header) {
    self.storage = storage
    self.header = header
  }

  /// Points the header at another refcount table: offset and size in one sector write.
  func setRefcountTable(at offset: HostOffset, clusters: UInt64) async throws(ImageError) {
    try unsafe await edit { sector, header in
      unsafe sector.storeBE64(offset.bytes, Header.Field.refcountTableOffset)
      unsafe sector.storeBE32(UInt32(clusters), Header.Field.refcountTableClusters)
      header.refcountTableOffset = offset.bytes
      header.refcountTableClusters = UInt32(clusters)
    }
  }

  /// Points the header at another L1 table: offset and size in one sector write.
  func setL1Table(at offset: HostOffset, entries: UInt32) async throws(ImageError) {
    try unsafe await edit { sector, header in
      unsafe sector.storeBE32(entries, Header.Field.l1Size)
      unsafe sector.storeBE64(offset.bytes, Header.Field.l1TableOffset)
      header.l1Size = entries
      header.l1TableOffset = offset.bytes
    }
  }

  /// Sets the virtual size, in bytes.
  func setSize(_ size: UInt64) async throws(ImageError) {
    try unsafe await edit { sector, header in
      unsafe sector.storeBE64(size, Header.Field.size)
      header.size = size
    }
  }

  /// Marks the image corrupt; version 2 has no such bit.
  func markCorrupt() async throws(ImageError) {
    try unsafe await edit { sector, header in
      guard header.version >= 3 else { return }
      header.incompatible.insert(.corrupt)
      unsafe sector.storeBE64(header.incompatible.rawValue, Header.Field.incompatible)
    }
  }

  /// Sets or clears the dirty bit, which says that refcounts may be wrong; version 2 has none.
  func setDirty(_ isDirty: Bool) async throws(ImageError) {
    try unsafe await edit { sector, header in
      guard header.version >= 3 else { return }
      if isDirty { header.incompatible.insert(.dirty) } else { header.incompatible.remove(.dirty) }
      unsafe sector.storeBE64(header.incompatible.rawValue, Header.Field.incompatible)
    }
  }

  /// Clears the autoclear bits whose promise is not kept.
  func clearAutoclear(keeping kept: AutoclearFeatures) async throws(ImageError) {
    try unsafe await edit { sector, header in
      guard header.version >= 3 else { return }
      header.autoclear.formIntersection(kept)
      unsafe sector.storeBE64(header.autoclear.rawValue, Header.Field.autoclear)
    }
  }

  /// Whether a write that failed took effect all the same.
  ///
  /// If that cannot be told, writing stops.
  private func isOnHostFile(_ sector: IOBuffer) async throws(ImageError) -> Bool {
    let found = IOBuffer(count: sector.count)
    do { try await storage.read(into: found, at: HostOffset(0)) } catch {
      storage.health.noteSyncFailure()
      throw error
    }
    return unsafe UnsafeRawBufferPointer(start: found.base, count: found.count)
      .elementsEqual(UnsafeRawBufferPointer(start: sector.base, count: sector.count))
  }

  private func edit(
    _ change: (UnsafeMutableRawPointer, inout Header) -> Void
  ) async throws(ImageError) {
    await mutex.acquire()
    defer { mutex.release() }
    let sector = IOBuffer(count: 512)
    try await storage.read(into: sector, at: HostOffset(0))
    var edited = header
    unsafe change(sector.base, &edited)
    do { try await storage.write(from: sector, at: HostOffset(0)) } catch {
      // Old or new header: whoever goes on must know which one is in force.
      guard try await isOnHostFile(sector) else { throw error }
    }
    header = edited
    try await storage.sync()
  }
}
