import BlockCore
import DiskImages
import Glibc
import HostFiles

/// A raw file with the VM state of a snapshot.
enum VMStateFile {
  /// The bytes that are read and written at once.
  static let pieceBytes = 1 << 20

  /// Opens a file for reading.
  ///
  /// - Throws: ``JobError/vmStateFile(_:_:)`` if the file cannot be opened.
  static func open(_ path: String) throws(JobError) -> RingHostFile {
    do throws(HostFileError) {
      return try RingHostFile.open(path, readOnly: true, mode: .buffered)
    } catch { throw .vmStateFile(path, text(error)) }
  }

  private static func text(_ error: HostFileError) -> String {
    switch error {
    case .open(let errno), .inspect(let errno): "\(errno)"
    case .inUse(let use): use.refusal
    case .notAFile: "neither a regular file nor a block device"
    }
  }

  /// Refuses a file that is one of the image.
  static func refuse(_ path: String, ifIn disk: any OpenDisk) throws(JobError) {
    guard let own = FileIdentity(path: path) else { return }
    for file in disk.files where FileIdentity(descriptor: file.descriptor) == own {
      throw .vmStateFile(path, "it is a file of the image: give another file")
    }
  }

  /// Makes a file whole or not at all: `fill` writes a new one beside it, which then takes its name.
  ///
  /// Only its owner can read the new file: it has what was in a machine's memory. If the process is killed,
  /// the old file stays. A part of the new one may be left beside it; its name is PATH, a dot and six letters
  /// that mkstemp(3) chooses.
  ///
  /// - Throws: ``JobError/vmStateFile(_:_:)``, or what `fill` throws; then the new file is removed.
  static func replace(
    _ path: String, _ fill: (RingHostFile) async throws(JobError) -> Void
  ) async throws(JobError) {
    let target = try destination(path)
    var name = Array("\(target).XXXXXX".utf8CString)
    let descriptor = unsafe mkstemp(&name)
    guard descriptor >= 0 else { throw .vmStateFile(path, "\(Errno(errno))") }
    do throws(JobError) {
      let file: RingHostFile
      do throws(HostFileError) {
        file = try RingHostFile.adopt(descriptor, readOnly: false, mode: .buffered)
      } catch {
        close(descriptor)
        throw .vmStateFile(path, text(error))
      }
      try await fill(file)
      do throws(Errno) { try await file.sync() } catch { throw .vmStateFile(path, "\(error)") }
      guard unsafe rename(name, target) == 0 else { throw .vmStateFile(path, "\(Errno(errno))") }
      if let errno = DirectorySync.sync(directoryOf: target) {
        throw .vmStateFile(path, "\(errno)")
      }
    } catch {
      _ = unsafe unlink(name)
      throw error
    }
  }

  /// The path behind symbolic links; a file that is there must be a regular one.
  private static func destination(_ path: String) throws(JobError) -> String {
    var status = stat()
    guard unsafe stat(path, &status) == 0 else { return path }
    guard status.st_mode & S_IFMT == S_IFREG else {
      throw .vmStateFile(path, "not a regular file: VM state is exported to a file")
    }
    guard let real = unsafe realpath(path, nil) else { return path }
    defer { unsafe free(real) }
    return unsafe String(cString: real)
  }
}
