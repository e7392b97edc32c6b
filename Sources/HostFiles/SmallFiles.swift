import CPlatform
import Glibc

/// The names in a directory except "." and ".."; none if it cannot be read.
package func directoryEntries(_ path: String) -> [String] {
  guard let directory = unsafe opendir(path) else { return [] }
  defer { unsafe closedir(directory) }
  var names: [String] = []
  while let entry = unsafe readdir(directory) {
    let name = unsafe withUnsafePointer(to: &entry.pointee.d_name) {
      unsafe $0.withMemoryRebound(to: CChar.self, capacity: 256) { unsafe String(cString: $0) }
    }
    if name != ".", name != ".." { names.append(name) }
  }
  return names
}

/// Where a symbolic link leads, such as those of /proc/PID/fd; nil if it cannot be read.
package func linkTarget(_ link: String) -> String? {
  var bytes = [CChar](repeating: 0, count: Int(PATH_MAX))
  let count = unsafe readlink(link, &bytes, bytes.count)
  guard count > 0 else { return nil }
  return String(decoding: bytes[..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self)
}

/// The text of a small file of /proc, /sys or /run, up to 1 MiB; empty if it cannot be read.
package func smallFile(_ path: String) -> String {
  let descriptor = unsafe qublk_open_file(path, O_RDONLY, 0)
  guard descriptor >= 0 else { return "" }
  defer { close(descriptor) }
  return readAll(descriptor) ?? ""
}
