import BlockCore
import Glibc
import HostFiles
import QCOW2Engine
import Uring

/// An image that is open, locked and understood.
final class AttachedImage {
  /// What the user calls it.
  let name: String
  let file: RingHostFile
  let engine: Image
  /// `st_dev` and `st_ino` of the image.
  let identity: (device: UInt64, inode: UInt64)

  /// Opens, locks, and reads the metadata; on failure nothing stays open.
  init(_ request: AttachRequest) throws(CommandError) {
    name = request.name
    file = try Self.open(request)
    do throws(CommandError) {
      try Self.lock(file, request)
      identity = try Self.identity(of: file, name: request.name)
      engine = try Self.openEngine(file, request)
    } catch {
      file.closeDescriptor()
      throw error
    }
  }

  /// Writes back what is in memory, makes it durable, and lets go of the image and its lock.
  func close() throws(CommandError) {
    defer { file.closeDescriptor() }
    do throws(ImageError) {
      try runBlocking { () async throws(ImageError) in try await self.engine.close() }
    } catch {
      throw .image(name, error)
    }
  }

  private static func open(_ request: AttachRequest) throws(CommandError) -> RingHostFile {
    do throws(HostFileError) {
      return try RingHostFile.open(
        request.path, readOnly: request.isReadOnly, mode: request.isDirect ? .direct : .buffered,
        granularity: request.blockSize)
    } catch {
      switch error {
      case .open(let errno): throw .file(request.name, .open, errno)
      case .inspect(let errno): throw .file(request.name, .stat, errno)
      case .notAFile: throw .notAnImageFile(request.name)
      }
    }
  }

  private static func lock(
    _ file: RingHostFile, _ request: AttachRequest
  ) throws(CommandError) {
    do throws(ImageLockError) {
      try ImageLock.acquire(
        request.isReadOnly ? .reader : .writer, descriptor: file.descriptor)
    } catch {
      throw .lock(request.name, error)
    }
  }

  private static func identity(
    of file: RingHostFile, name: String
  ) throws(CommandError) -> (device: UInt64, inode: UInt64) {
    var status = stat()
    guard unsafe fstat(file.descriptor, &status) == 0 else {
      throw .file(name, .stat, Errno(errno))
    }
    return (UInt64(status.st_dev), UInt64(status.st_ino))
  }

  private static func openEngine(
    _ file: RingHostFile, _ request: AttachRequest
  ) throws(CommandError) -> Image {
    let options = request.imageOptions
    do throws(ImageError) {
      return try runBlocking { () async throws(ImageError) in
        try await Image.open(file, options: options)
      }
    } catch {
      throw .image(request.name, error)
    }
  }
}
