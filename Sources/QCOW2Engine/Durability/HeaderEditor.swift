import BlockCore
import QCOW2Format

/// Changes fields of the header on the host file; everything else keeps its bytes.
///
/// Each edit reads the first sector, changes in it what a ``HeaderPatch`` says, writes the sector
/// (atomic on every disk) and makes it durable. What the header points at is changed by
/// ``commit(_:after:of:)``.
final class HeaderEditor: @unchecked Sendable {  // why: `lock` guards the header copy
  let storage: ImageStorage
  /// Held while the header cluster is being changed.
  let mutex = AsyncMutex()
  private let lock = FutexLock(.leaf)
  private var current: Header

  init(storage: ImageStorage, header: Header) {
    self.storage = storage
    current = header
  }

  /// The header as the host file has it.
  var header: Header { lock.withLock { current } }

  /// Sets the virtual size, in bytes.
  func setSize(_ size: UInt64) async throws(ImageError) {
    try await edit { _ in .size(size) }
  }

  /// Marks the image corrupt; version 2 has no such bit.
  func markCorrupt() async throws(ImageError) {
    try await edit { $0.adding(.corrupt) }
  }

  /// Sets or clears the dirty bit, which says that refcounts may be wrong; version 2 has none.
  func setDirty(_ isDirty: Bool) async throws(ImageError) {
    try await edit { isDirty ? $0.adding(.dirty) : $0.removing(.dirty) }
  }

  /// Clears the autoclear bits whose promise is not kept.
  func clearAutoclear(keeping kept: AutoclearFeatures) async throws(ImageError) {
    try await edit { $0.keeping(kept) }
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

  func edit(
    _ change: (Header) -> HeaderPatch
  ) async throws(ImageError) {
    try await edit { sector, header in
      let patch = change(header)
      patch.write(into: &sector, version: header.version)
      return patch
    }
  }

  /// The same for a change that writes more of the first sector than fields of the header.
  func edit(
    _ change: (inout MutableSpan<UInt8>, Header) -> HeaderPatch
  ) async throws(ImageError) {
    await mutex.acquire()
    defer { mutex.release() }
    let sector = IOBuffer(count: HeaderPatch.sectorLength)
    try await storage.read(into: sector, at: HostOffset(0))
    var edited = header
    let patch = sector.withMutableBytes { change(&$0, edited) }
    edited.apply(patch)
    try await writeFirstSector(sector, edited)
  }

  /// Writes the first sector, which brings `edited` into force, and makes it durable.
  func writeFirstSector(_ sector: IOBuffer, _ edited: Header) async throws(ImageError) {
    mutex.assertHeld()
    do { try await storage.write(from: sector, at: HostOffset(0)) } catch {
      // Old or new header: whoever goes on must know which one is in force.
      guard try await isOnHostFile(sector) else { throw error }
    }
    lock.withLock { current = edited }
    try await storage.sync()
  }
}
