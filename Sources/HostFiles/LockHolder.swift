import Glibc

/// A process that has a file locked, as far as /proc tells.
package struct LockHolder: Sendable {
  /// The process.
  package let process: Int32
  /// The name of its program, up to 15 characters.
  package let name: String
  /// The ublk device that it serves, such as /dev/ublkb0; nil if it serves none.
  package let device: String?

  package init(process: Int32, name: String, device: String? = nil) {
    self.process = process
    self.name = name
    self.device = device
  }

  /// Looks for another process that holds a lock on the file behind `descriptor`.
  ///
  /// The kernel does not say who owns a lock of an open file description, so this reads the
  /// `lock:` lines of /proc/PID/fdinfo: best effort, for messages only; nil without the rights to
  /// see the process. Locks of this process are passed over. Of several processes, one that serves a
  /// device is told.
  static func find(_ descriptor: Int32) -> LockHolder? {
    var wanted = stat()
    guard unsafe fstat(descriptor, &wanted) == 0 else { return nil }
    var found: LockHolder?
    for name in directoryEntries("/proc") {
      guard let process = Int32(name), process != getpid() else { continue }
      if holdsLock(process, on: wanted) {
        let device = servedDevice(process)
        let holder = LockHolder(process: process, name: programName(process), device: device)
        if device != nil { return holder }
        found = found ?? holder
      }
    }
    return found
  }

  /// The block device of the first ublk character device that the process has open.
  private static func servedDevice(_ process: Int32) -> String? {
    let prefix = "/dev/ublkc"
    for entry in directoryEntries("/proc/\(process)/fd") {
      if let target = linkTarget("/proc/\(process)/fd/\(entry)"), target.hasPrefix(prefix),
        let number = UInt32(target.dropFirst(prefix.count))
      {
        return "/dev/ublkb\(number)"
      }
    }
    return nil
  }

  /// What a supervisor of qublk is called, in place of its program's name.
  package static let supervisorName = "qublk-super"

  private static func holdsLock(_ process: Int32, on wanted: stat) -> Bool {
    for entry in directoryEntries("/proc/\(process)/fd") {
      var status = stat()
      guard unsafe stat("/proc/\(process)/fd/\(entry)", &status) == 0,
        status.st_ino == wanted.st_ino, status.st_dev == wanted.st_dev
      else { continue }
      let lines = smallFile("/proc/\(process)/fdinfo/\(entry)").split(separator: "\n")
      if lines.contains(where: { $0.hasPrefix("lock:") }) { return true }
    }
    return false
  }

  private static func programName(_ process: Int32) -> String {
    let name = smallFile("/proc/\(process)/comm").prefix { $0 != "\n" }
    return name.isEmpty ? "unknown" : String(name)
  }
}
