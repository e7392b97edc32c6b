package import BlockCore
import Glibc
package import HostFiles
package import QCOW2Engine

/// An open raw disk, locked: the counterpart of ``DiskImage`` for files without a format.
package final class RawDisk: OpenDisk {
  package let raw: RawTarget
  /// The file, alone: what host transfers call 0.
  package let files: [RingHostFile]
  package let objects: [HostObject]
  package let identity: (device: UInt64, inode: UInt64)
  /// The bytes of the file when it was opened.
  let length: UInt64
  package let name: String

  private init(
    _ file: RingHostFile, length: UInt64, _ identity: (device: UInt64, inode: UInt64),
    _ options: DiskImageOptions
  ) {
    files = [file]
    self.length = length
    name = options.name
    self.identity = identity
    let object = HostObject(.image, path: options.path)
    objects = [object]
    raw = RawTarget(
      options.engineFile(file), length: length, discardsToHost: options.engine.discardsToHost,
      reporter: options.events.map { EventReporter($0, object) })
    target = options.detectZeroes.applied(to: raw)
  }

  package let target: any BlockTarget
  package var allocationUnit: UInt64 { 4096 }
  package var isEncrypted: Bool { false }
  package var warnings: [String] { [] }
  package func maintain() async {}

  /// Holes of a regular file are zeros.
  package func status(
    at offset: GuestOffset, length: UInt64
  ) async throws(ImageError) -> BlockStatus {
    guard length > 0, offset.bytes < raw.size, length <= raw.size - offset.bytes else {
      throw .badRequest
    }
    let host = HostOffset(offset.bytes)
    let found = await files[0].extent(at: host, length: length)
    // A file may end within a sector, which is data then.
    let end = (offset.bytes + found.length + 511) & ~511
    return BlockStatus(
      kind: found.isHole ? .zero : .data, length: min(length, end - offset.bytes), host: host)
  }

  /// Opens and locks the file; what it holds is not looked at [SEC-2].
  package static func open(_ options: DiskImageOptions) async throws(DiskImageError) -> RawDisk {
    do throws(DiskImageError.Reason) {
      if options.locks == .none && !options.readOnly { throw .unlockedWriting }
      let opener = ChainFileOpener(options: options)
      let file = try opener.openFile(options.path, readOnly: options.readOnly)
      do throws(DiskImageError.Reason) {
        try opener.lock(file, readOnly: options.readOnly)
        return try RawDisk(file, length: await length(of: file), identity(of: file), options)
      } catch {
        Chain.close([file])
        throw error
      }
    } catch {
      throw DiskImageError(image: options.name, referrer: nil, subject: .image, reason: error)
    }
  }

  /// A disk of the only layer of a chain, a raw file that is open; it stays open on failure.
  static func open(_ chain: Chain) async throws(DiskImageError) -> RawDisk {
    let file = chain.layers[0].file
    do throws(DiskImageError.Reason) {
      return try RawDisk(file, length: await length(of: file), identity(of: file), chain.options)
    } catch { throw chain.error(error, in: 0) }
  }

  private static func length(
    of file: RingHostFile
  ) async throws(DiskImageError.Reason) -> UInt64 {
    do throws(Errno) { return try await file.length() } catch { throw .inspect(error) }
  }

  private static func identity(
    of file: RingHostFile
  ) throws(DiskImageError.Reason) -> (device: UInt64, inode: UInt64) {
    var status = stat()
    guard unsafe fstat(file.descriptor, &status) == 0 else { throw .inspect(Errno(errno)) }
    return (UInt64(status.st_dev), UInt64(status.st_ino))
  }

  package func close() async throws(DiskImageError) {
    defer { Chain.close(files) }
    do throws(Errno) { try await raw.flush() } catch {
      throw DiskImageError(
        image: name, referrer: nil, subject: .image,
        reason: .engine(.io(.sync, at: HostOffset(0), error)))
    }
  }
}
