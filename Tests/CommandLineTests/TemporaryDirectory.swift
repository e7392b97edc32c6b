import CPlatform
import Glibc
import HostFiles
import TestTools
import Testing

/// A directory that is gone, with its files, when its owner is.
final class TemporaryDirectory {
  let path: String

  init() throws {
    var template = Array("/tmp/qublk-cli.XXXXXX\0".utf8CString)
    let made = mkdtemp(&template)
    path = String(cString: try #require(made))
  }

  deinit {
    for name in directoryEntries(path) { unlink("\(path)/\(name)") }
    rmdir(path)
  }

  /// A file with these bytes.
  func file(_ name: String, _ bytes: [UInt8]) throws -> String {
    let file = "\(path)/\(name)"
    let descriptor = qublk_open_file(file, O_RDWR, 1)
    try #require(descriptor >= 0)
    defer { close(descriptor) }
    try #require(write(descriptor, bytes, bytes.count) == bytes.count)
    return file
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

let hasQEMU = hasProgram("qemu-img") && hasProgram("qemu-io")
let hasDriver = access("/dev/ublk-control", F_OK) == 0
