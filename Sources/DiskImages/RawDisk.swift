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
  private let name: String

  private init(
    _ file: RingHostFile, length: UInt64, _ identity: (device: UInt64, inode: UInt64),
    _ options: DiskImageOptions
  ) {
    files = [file]
    name = options.name
    self.identity = identity
    let object = HostObject(.image, path: options.path)
    objects = [object]
    raw = RawTarget(
      file, length: length, discardsToHost: options.engine.discardsToHost,
      reporter: options.events.map { EventReporter($0, object) })
  }

  package var target: any BlockTarget { raw }
  package var allocationUnit: UInt64 { 4096 }
  package var isEncrypted: Bool { false }
  package var warnings: [String] { [] }
  package func maintain() async {}

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
