import Glibc
import TestTools
import Testing

extension TemporaryDirectory {
  convenience init() throws { try self.init(in: "/tmp") }

  /// A file with these bytes.
  func file(_ name: String, _ bytes: [UInt8]) throws -> String {
    try TestTools.write(bytes, to: file(name))
    return file(name)
  }

  /// A qcow2 image made by qemu-img.
  func image(_ name: String, size: String = "64M") throws -> String {
    let file = "\(path)/\(name)"
    let made = try run("qemu-img", "create", "-q", "-f", "qcow2", file, size)
    try #require(made.status == 0, "\(made.errors)")
    return file
  }
}

/// Whether a program is there, along PATH.
func hasProgram(_ name: String) -> Bool {
  let path = getenv("PATH").map { String(cString: $0) } ?? ""
  return path.split(separator: ":").contains { access("\($0)/\(name)", X_OK) == 0 }
}

let hasDriver = access("/dev/ublk-control", F_OK) == 0
