import HostFiles

/// The memory that this process may use: the least `memory.max` of its cgroup and of those above it.
struct MemoryLimit: Equatable {
  let bytes: UInt64
  /// The file that says so.
  let file: String

  /// Nil where there is no limit, and where there is no cgroup v2.
  ///
  /// To be asked before the daemon has its own mounts.
  static func current() -> MemoryLimit? {
    let line = smallFile("/proc/self/cgroup").split(separator: "\n").first { $0.hasPrefix("0::/") }
    guard let line else { return nil }
    let root = MountTable.entries().first { $0.type == "cgroup2" }?.place ?? "/sys/fs/cgroup"
    return least(of: String(line.dropFirst("0::".count)), root: root)
  }

  /// The least limit of the group `path` and of those above it, below `root`.
  static func least(of path: String, root: String) -> MemoryLimit? {
    var names = path.split(separator: "/")
    var least: MemoryLimit?
    while true {
      let file = ([Substring(root)] + names + ["memory.max"]).joined(separator: "/")
      // "max" is no number.
      if let bytes = UInt64(smallFile(file).prefix { $0 != "\n" }), bytes < least?.bytes ?? .max {
        least = MemoryLimit(bytes: bytes, file: file)
      }
      if names.popLast() == nil { return least }
    }
  }
}
