import BlockCore
import Glibc

/// An unnamed file that goes away with its last descriptor.
final class TemporaryFile {
  let descriptor: Int32
  let path: String

  init(directory: String = "/var/tmp") throws {
    var template = Array("\(directory)/qublk-test.XXXXXX".utf8CString)
    descriptor = mkstemp(&template)
    if descriptor < 0 { throw Errno(errno) }
    path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  deinit {
    close(descriptor)
    unlink(path)
  }
}
