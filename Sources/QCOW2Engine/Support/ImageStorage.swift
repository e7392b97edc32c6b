import BlockCore
import QCOW2Format

/// The host file of an image, with errors that say what was done where.
struct ImageStorage: Sendable {
  let file: any HostFile
  let health: ImageHealth

  func read(into buffer: DataBuffer, at offset: HostOffset) async throws(ImageError) {
    do { try await file.read(into: buffer, at: offset) } catch {
      throw .io(.read, at: offset, error)
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
    do { try await file.write(from: buffer, at: offset) } catch {
      throw .io(.write, at: offset, error)
    }
  }

  func writeZeroes(at offset: HostOffset, length: UInt64) async throws(ImageError) {
    do { try await file.writeZeroes(at: offset, length: length) } catch {
      throw .io(.zero, at: offset, error)
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
      throw .io(.sync, at: HostOffset(0), error)
    }
  }

  /// Makes the file reach to `length` at least; never shortens it.
  func extend(to length: UInt64) async throws(ImageError) {
    do { try await file.extend(to: length) } catch {
      throw .io(.resize, at: HostOffset(length), error)
    }
  }

  /// Makes the file reach over the range, with storage of the host if it has any to give.
  func reserve(at offset: HostOffset, length: UInt64) async throws(ImageError) {
    do { try await file.reserve(at: offset, length: length) } catch {
      throw .io(.resize, at: offset, error)
    }
  }

  func setLength(_ length: UInt64) async throws(ImageError) {
    do { try await file.setLength(length) } catch {
      throw .io(.resize, at: HostOffset(length), error)
    }
  }

  func length() async throws(ImageError) -> UInt64 {
    do { return try await file.length() } catch { throw .io(.length, at: HostOffset(0), error) }
  }
}
