import Glibc

/// Writes all of `text`, however many calls it takes.
///
/// - Returns: False on the first failure, with `errno` set.
package func writeAll(_ descriptor: Int32, _ text: String) -> Bool {
  let bytes = Array(text.utf8)
  var done = 0
  while done < bytes.count {
    let count = unsafe bytes[done...].withUnsafeBytes {
      unsafe write(descriptor, $0.baseAddress, $0.count)
    }
    if count < 0, errno == EINTR { continue }
    guard count > 0 else { return false }
    done += count
  }
  return true
}

/// Reads until the other side closes, up to `limit` bytes.
///
/// - Returns: The bytes as text, or nil on a failure (a time limit included), with `errno` set.
package func readAll(_ descriptor: Int32, limit: Int = 1 << 20) -> String? {
  var bytes: [UInt8] = []
  var chunk = [UInt8](repeating: 0, count: 4096)
  while bytes.count < limit {
    let count = unsafe read(descriptor, &chunk, chunk.count)
    if count < 0, errno == EINTR { continue }
    if count < 0 { return nil }
    if count == 0 { break }
    bytes.append(contentsOf: chunk[..<count])
  }
  return String(decoding: bytes, as: UTF8.self)
}
