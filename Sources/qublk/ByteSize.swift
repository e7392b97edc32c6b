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

  var defaultValueDescription: String { String(bytes) }
}
