import BlockCore
import QCOW2Format

/// The host file of an image, with errors that say what was done where.
struct ImageStorage: Sendable {
  let file: any HostFile
  let health: ImageHealth
  /// The file is the image's external data file.
  var isDataFile = false

  /// Reports a failure to whoever runs the disk; nobody pays for it who does not fail.
  @inline(never) private func failed(
    _ operation: HostOperation, at offset: HostOffset, length: UInt64 = 0, _ errno: Errno
  ) -> ImageError {
    health.reporter?.note(
      operation, at: offset, length: length, errno, inDataFile: isDataFile)
    return .io(operation, at: offset, errno)
  }

  func read(into buffer: DataBuffer, at offset: HostOffset) async throws(ImageError) {
    do { try await file.read(into: buffer, at: offset) } catch {
      throw failed(.read, at: offset, length: UInt64(buffer.count), error)
    }
  }

  /// Fills a whole buffer, which stays alive until the transfer has ended.
  func read(into buffer: IOBuffer, at offset: HostOffset) async throws(ImageError) {
    defer { withExtendedLifetime(buffer) {} }
    try await read(into: buffer.data, at: offset)
  }

  /// Writes a whole buffer, which stays alive until the transfer has ended.
  func write(from buffer: IOBuffer, at offset: HostOffset) async throws(ImageError) {
    defer { withExtendedLifetime(buffer) {} }
    try await write(from: buffer.data, at: offset)
  }

  func fillWithZeroes(_ buffer: DataBuffer) async throws(ImageError) {
    do { try await file.fillWithZeroes(buffer) } catch {
      throw .io(.read, at: HostOffset(0), error)
    }
  }

  func write(from buffer: DataBuffer, at offset: HostOffset) async throws(ImageError) {
    assert(
      (offset.bytes | UInt64(buffer.count)) & UInt64(file.traits.offsetAlignment - 1) == 0,
      "a write does not keep to the file's alignment")
    do { try await file.write(from: buffer, at: offset) } catch {
      throw failed(.write, at: offset, length: UInt64(buffer.count), error)
    }
  }

  func writeZeroes(at offset: HostOffset, length: UInt64) async throws(ImageError) {
    do { try await file.writeZeroes(at: offset, length: length) } catch {
      throw failed(.zero, at: offset, length: length, error)
    }
  }

  /// A hint to the host; its failure changes nothing that the image promises.
  func punchHole(at offset: HostOffset, length: UInt64) async {
    try? await file.punchHole(at: offset, length: length)
  }

  /// The barrier.
  ///
  /// A failure sticks: it may have dropped writes that a second sync, finding nothing
  /// left to do, would call durable [ORD-9].
  func sync() async throws(ImageError) {
    if health.hasLostSync { throw .writesStopped }
    do { try await file.sync() } catch {
      health.noteSyncFailure()
      throw failed(.sync, at: HostOffset(0), error)
    }
  }

  /// Makes the file reach to `length` at least; never shortens it.
  func extend(to length: UInt64) async throws(ImageError) {
    do { try await file.extend(to: length) } catch {
      throw failed(.resize, at: HostOffset(length), error)
    }
  }

  /// Makes the file reach over the range, with storage of the host if it has any to give.
  func reserve(
    at offset: HostOffset, length: UInt64
  ) async throws(ImageError) -> Reservation {
    do { return try await file.reserve(at: offset, length: length) } catch {
      throw failed(.resize, at: offset, length: length, error)
    }
  }

  /// Makes a range, which no pointer leads to yet, zeros with storage of the host.
  func allocateZeroes(at offset: HostOffset, length: UInt64) async throws(ImageError) {
    do { try await file.allocateZeroes(at: offset, length: length) } catch {
      throw failed(.zero, at: offset, length: length, error)
    }
  }

  /// Gives holes of a table storage, so that its write-back finds room.
  ///
  /// - Returns: false if the host has no such way.
  @discardableResult
  func allocateHoles(at offset: HostOffset, length: UInt64) async throws(ImageError) -> Bool {
    do { return try await file.allocateHoles(at: offset, length: length) } catch {
      if error.isNoSpace { throw failed(.resize, at: offset, length: length, error) }
      // Best effort: the write-back may find room all the same.
      return true
    }
  }

  /// The same by writing zeros into the holes; nobody else may write there meanwhile.
  func fillHoles(at offset: HostOffset, length: UInt64) async throws(ImageError) {
    do { try await file.fillHoles(at: offset, length: length) } catch {
      throw failed(.zero, at: offset, length: length, error)
    }
  }

  /// A place behind which nothing was ever written; nil if the host cannot tell.
  func endOfData(from offset: HostOffset) async -> HostOffset? {
    await file.endOfData(from: offset)
  }

  func setLength(_ length: UInt64) async throws(ImageError) {
    do { try await file.setLength(length) } catch {
      throw failed(.resize, at: HostOffset(length), error)
    }
  }

  func length() async throws(ImageError) -> UInt64 {
    do { return try await file.length() } catch { throw failed(.length, at: HostOffset(0), error) }
  }
}
