import Glibc
import TestTools

/// A directory in memory, or in /tmp, that goes away with the object.
final class Scratch {
  let path: String

  /// Makes the directory in `parent` instead, if that is given.
  init(parent: String? = nil) throws {
    var template = Array("\(parent ?? Self.parent)/qublk-interop-XXXXXX".utf8CString)
    guard mkdtemp(&template) != nil else { throw POSIXFailure(code: errno) }
    path = String(decoding: template.dropLast().map(UInt8.init(bitPattern:)), as: UTF8.self)
  }

  /// /dev/shm if it has 2 GiB to spare.
  private static let parent: String = {
    var space = statvfs()
    guard statvfs("/dev/shm", &space) == 0, access("/dev/shm", W_OK) == 0 else { return "/tmp" }
    return UInt64(space.f_bavail) * UInt64(space.f_frsize) >= 2 << 30 ? "/dev/shm" : "/tmp"
  }()

  deinit {
    if getenv("QUBLK_KEEP") == nil { _ = try? run(["rm", "-rf", path]) }
  }

  /// The path of a file in the directory.
  func file(_ name: String) -> String { path + "/" + name }
}

/// All bytes of a file.
func contents(_ path: String) throws -> [UInt8] {
  let descriptor = open(path, O_RDONLY | O_CLOEXEC)
  guard descriptor >= 0 else { throw POSIXFailure(code: errno) }
  defer { close(descriptor) }
  var info = stat()
  guard fstat(descriptor, &info) == 0 else { throw POSIXFailure(code: errno) }
  var bytes = [UInt8](repeating: 0, count: Int(info.st_size))
  var done = 0
  while done < bytes.count {
    let count = bytes.withUnsafeMutableBytes { whole in
      let rest = UnsafeMutableRawBufferPointer(rebasing: whole[done...])
      return pread(descriptor, rest.baseAddress, rest.count, off_t(done))
    }
    if count <= 0 { throw POSIXFailure(code: count < 0 ? errno : EIO) }
    done += count
  }
  return bytes
}

/// Overwrites bytes of a file.
func patch(_ path: String, at offset: Int, _ bytes: [UInt8]) throws {
  let descriptor = open(path, O_WRONLY | O_CLOEXEC)
  guard descriptor >= 0 else { throw POSIXFailure(code: errno) }
  defer { close(descriptor) }
  guard pwrite(descriptor, bytes, bytes.count, off_t(offset)) == bytes.count else {
    throw POSIXFailure(code: errno)
  }
}
