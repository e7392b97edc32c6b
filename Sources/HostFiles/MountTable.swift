/// The mounts that this process sees.
package enum MountTable {
  /// One mount.
  package struct Entry {
    /// The file system's device number, as "8:1".
    package let device: String
    /// Where it is mounted.
    package let place: String
    package let type: String
    /// What is mounted: a path of a device, for file systems that have one.
    package let source: String
  }

  /// All mounts, in the order of mounting.
  package static func entries() -> [Entry] {
    smallFile("/proc/self/mountinfo").split(separator: "\n").compactMap { line in
      let fields = line.split(separator: " ")
      // A line has optional fields, then "-", the type and the source.
      guard fields.count > 4, let end = fields.dropFirst(5).firstIndex(of: "-"),
        fields.count > end + 2
      else { return nil }
      return Entry(
        device: String(fields[2]), place: unescaped(fields[4]),
        type: String(fields[end + 1]), source: unescaped(fields[end + 2]))
    }
  }

  /// Where file systems are mounted, in the order of mounting.
  package static func places() -> [String] { entries().map(\.place) }

  /// A path of mountinfo, where space, tab, newline and backslash are written in octal (`\040`).
  package static func unescaped(_ field: Substring) -> String {
    var bytes: [UInt8] = []
    var rest = Array(field.utf8)[...]
    while let byte = rest.popFirst() {
      if byte == UInt8(ascii: "\\"), rest.count >= 3,
        let code = UInt8(String(decoding: rest.prefix(3), as: UTF8.self), radix: 8)
      {
        bytes.append(code)
        rest = rest.dropFirst(3)
      } else {
        bytes.append(byte)
      }
    }
    return String(decoding: bytes, as: UTF8.self)
  }
}
