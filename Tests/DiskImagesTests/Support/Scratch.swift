import DiskImages
import Glibc
import HostFiles
import QCOW2Engine
import TestTools
import Uring

typealias Scratch = TemporaryDirectory

extension TemporaryDirectory {
  /// On a disk, for direct I/O.
  convenience init() throws { try self.init(in: "/var/tmp") }

  /// Runs a line of bash, which must succeed, in the directory.
  @discardableResult
  func run(_ line: String) throws -> String { try mustShell("cd '\(path)' && set -e; \(line)") }

  /// Overwrites the first occurrence of some bytes in the first KiB of a file.
  func replace(_ old: [UInt8], by new: [UInt8], in name: String) throws {
    let descriptor = open(file(name), O_RDWR | O_CLOEXEC)
    guard descriptor >= 0 else { throw POSIXFailure(code: errno) }
    defer { close(descriptor) }
    var bytes = [UInt8](repeating: 0, count: 1024)
    let count = pread(descriptor, &bytes, bytes.count, 0)
    for start in 0..<max(count - old.count, 0)
    where bytes[start..<(start + old.count)].elementsEqual(old) {
      guard pwrite(descriptor, new, new.count, off_t(start)) == new.count else {
        throw POSIXFailure(code: errno)
      }
      return
    }
    throw POSIXFailure(code: ENOENT)
  }

  /// Makes the header extension for the backing format, or for the data file's name, an unknown
  /// one.
  func hide(_ kind: HiddenExtension, in name: String) throws {
    try replace(kind.magic, by: [0x12, 0x34, 0x56, 0x78], in: name)
  }

  enum HiddenExtension {
    case backingFormat, dataFile

    var magic: [UInt8] {
      switch self {
      case .backingFormat: [0xe2, 0x79, 0x2a, 0xca]
      case .dataFile: Array("DATA".utf8)
      }
    }
  }

  /// The number of descriptors of this process that lead into the directory.
  var openFiles: Int {
    directoryEntries("/proc/self/fd").count { entry in
      var buffer = [CChar](repeating: 0, count: 4096)
      let count = readlink("/proc/self/fd/\(entry)", &buffer, buffer.count)
      let bytes = buffer[..<max(count, 0)].map { UInt8(bitPattern: $0) }
      return String(decoding: bytes, as: UTF8.self).hasPrefix(path + "/")
    }
  }

  /// Options for an image in the directory, which messages call by its name alone.
  func options(_ name: String, readOnly: Bool = true) -> DiskImageOptions {
    var options = DiskImageOptions(path: file(name), name: name, readOnly: readOnly)
    options.currentDirectory = .success(path)
    return options
  }
}

/// Opens an image and closes it again.
///
/// - Returns: What kept it from being opened, as text; nil if nothing did.
func openMessage(_ options: DiskImageOptions) -> String? {
  do throws(DiskImageError) {
    try runBlocking { () async throws(DiskImageError) in
      try await DiskImage.open(options).close()
    }
    return nil
  } catch { return error.message }
}
