import BlockCore
package import HostFiles
import QCOW2Engine

/// An open raw disk, locked: the counterpart of ``DiskImage`` for files without a format.
package final class RawDisk: Sendable {
  package let target: RawTarget
  /// The file, alone: what host transfers call 0.
  package let files: [RingHostFile]
  private let name: String

  private init(_ file: RingHostFile, length: UInt64, _ options: DiskImageOptions) {
    files = [file]
    name = options.name
    target = RawTarget(file, length: length, discardsToHost: options.engine.discardsToHost)
  }

  /// Opens and locks the file; what it holds is not looked at [SEC-2].
  package static func open(_ options: DiskImageOptions) async throws(DiskImageError) -> RawDisk {
    do throws(DiskImageError.Reason) {
      if options.locks == .none && !options.readOnly { throw .unlockedWriting }
      let opener = ChainFileOpener(options: options)
      let file = try opener.openFile(options.path, readOnly: options.readOnly)
      do throws(DiskImageError.Reason) {
        try opener.lock(file, readOnly: options.readOnly)
        return RawDisk(file, length: try await length(of: file), options)
      } catch {
        file.closeDescriptor()
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

  /// Makes everything durable and lets go of the file and its lock, whether or not that worked.
  ///
  /// No request may be running.
  package func close() async throws(DiskImageError) {
    defer { for file in files { file.closeDescriptor() } }
    do throws(Errno) { try await target.flush() } catch {
      throw DiskImageError(
        image: name, referrer: nil, subject: .image,
        reason: .engine(.io(.sync, at: HostOffset(0), error)))
    }
  }
}
