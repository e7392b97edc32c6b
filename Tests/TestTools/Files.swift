import Glibc

/// Opens a file, calls `body` with its descriptor and closes it.
private func withFile<Value>(
  _ path: String, _ flags: Int32, _ body: (Int32) throws(POSIXFailure) -> Value
) throws(POSIXFailure) -> Value {
  let descriptor = open(path, flags | O_CLOEXEC, 0o600)
  guard descriptor >= 0 else { throw POSIXFailure(code: errno, path) }
  defer { close(descriptor) }
  return try body(descriptor)
}

/// All bytes of a file.
package func contents(_ path: String) throws(POSIXFailure) -> [UInt8] {
  try withFile(path, O_RDONLY) { descriptor throws(POSIXFailure) in
    var bytes = [UInt8](repeating: 0, count: Int(lseek(descriptor, 0, SEEK_END)))
    var done = 0
    while done < bytes.count {
      let count = bytes.withUnsafeMutableBytes { whole in
        let rest = UnsafeMutableRawBufferPointer(rebasing: whole[done...])
        return pread(descriptor, rest.baseAddress, rest.count, off_t(done))
      }
      if count <= 0 { throw POSIXFailure(code: count < 0 ? errno : EIO, path) }
      done += count
    }
    return bytes
  }
}

/// Makes a file of these bytes, in place of one that is there.
package func write(_ bytes: [UInt8], to path: String) throws(POSIXFailure) {
  try withFile(path, O_WRONLY | O_CREAT | O_TRUNC) { descriptor throws(POSIXFailure) in
    try writeAll(descriptor, bytes, at: 0, path)
  }
}

/// Overwrites bytes of a file that is there.
package func patch(_ path: String, at offset: Int, _ bytes: [UInt8]) throws(POSIXFailure) {
  try withFile(path, O_WRONLY) { descriptor throws(POSIXFailure) in
    try writeAll(descriptor, bytes, at: offset, path)
  }
}

private func writeAll(
  _ descriptor: Int32, _ bytes: [UInt8], at offset: Int, _ path: String
) throws(POSIXFailure) {
  guard pwrite(descriptor, bytes, bytes.count, off_t(offset)) == bytes.count else {
    throw POSIXFailure(code: errno, path)
  }
}
