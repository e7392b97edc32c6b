/// A device as a user names it: `3`, `ublkb3` or `/dev/ublkb3`.
package struct DeviceName: Equatable {
  /// The kernel's largest count of ublk devices (`UBLK_MINORS`); ids are below it.
  package static let idLimit: UInt32 = 1 << 20

  /// The kernel's number.
  package let id: UInt32

  /// The device with this number.
  package init(id: UInt32) { self.id = id }

  /// Reads a name; nil for anything else.
  package init?(argument: String) {
    var digits = Substring(argument)
    for prefix in ["/dev/ublkb", "/dev/ublkc", "ublkb", "ublkc"] where argument.hasPrefix(prefix) {
      digits = argument.dropFirst(prefix.count)
      break
    }
    guard !digits.isEmpty, digits.allSatisfy(\.isASCII), digits.allSatisfy(\.isNumber),
      let id = UInt32(digits), id < Self.idLimit
    else { return nil }
    self.id = id
  }

  /// The kernel's name of the disk.
  var disk: String { "ublkb\(id)" }
  /// The node of the disk.
  package var path: String { "/dev/ublkb\(id)" }
  /// The node by which the daemon serves.
  package var serverPath: String { "/dev/ublkc\(id)" }
}
