import ArgumentParser

/// A device as a user names it: `3`, `ublkb3` or `/dev/ublkb3`.
struct DeviceName: ExpressibleByArgument, Equatable {
  /// The kernel's largest count of ublk devices (`UBLK_MINORS`); ids are below it.
  static let idLimit: UInt32 = 1 << 20

  let id: UInt32

  init(id: UInt32) { self.id = id }

  init?(argument: String) {
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
  var path: String { "/dev/ublkb\(id)" }
  /// The node by which the daemon serves.
  var serverPath: String { "/dev/ublkc\(id)" }
}
