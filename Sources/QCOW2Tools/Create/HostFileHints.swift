import CPlatform

/// Options of `create` that are for the host's file system, whatever the format.
package struct HostFileHints: Equatable, Sendable {
  /// No copy-on-write of the file's data, where the file system has it; nil if nothing was said.
  package var nocow: Bool?
  /// How many bytes the file system is to allocate at once; nil if nothing was said.
  package var extentSize: UInt64?

  /// Nothing was said.
  package init() {}

  /// Takes an option over; false if it is another one.
  mutating func take(_ name: String, _ value: String) throws(OptionError) -> Bool {
    switch name {
    case "nocow": nocow = try CreateOptions.flag(name, value)
    case "extent_size_hint":
      guard let bytes = SizeText.parse(value), bytes <= UInt64(UInt32.max) else {
        throw .badValue(name: name, found: value, allowed: "0 to \(UInt32.max) bytes")
      }
      extentSize = bytes
    default: return false
    }
    return true
  }

  /// The options again, for the line that repeats them.
  var words: [String] {
    (nocow.map { ["nocow=\($0 ? "on" : "off")"] } ?? [])
      + (extentSize.map { ["extent_size_hint=\($0)"] } ?? [])
  }

  /// Tells the file system; a file that it is told of is empty.
  ///
  /// - Returns: What was asked for by name and could not be done, in a line.
  func apply(to descriptor: Int32) -> String? {
    // Only btrfs has it, and nobody misses it elsewhere.
    if nocow == true { _ = qublk_set_nocow(descriptor) }
    guard let extentSize, extentSize > 0 else { return nil }
    let result = qublk_set_extent_size(descriptor, UInt32(extentSize))
    return result < 0
      ? "extent_size_hint=\(extentSize) is not kept: the host's file system does not take it" : nil
  }
}
