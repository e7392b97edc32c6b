import ArgumentParser
import QCOW2Tools

/// A size on the command line: bytes, or a number with a suffix as qemu-img takes it ("32M").
struct ByteSize: ExpressibleByArgument {
  let bytes: UInt64

  init(bytes: UInt64) { self.bytes = bytes }

  init?(argument: String) {
    guard let bytes = SizeText.parse(argument) else { return nil }
    self.bytes = bytes
  }

  /// Throws if an offset or length is more than a file can have.
  func requireFileSize(_ option: String) throws(ValidationError) {
    guard bytes > UInt64(Int64.max) else { return }
    throw ValidationError("\(option) is \(bytes), expected 0 to \(Int64.max)")
  }

  var defaultValueDescription: String { String(bytes) }
}
