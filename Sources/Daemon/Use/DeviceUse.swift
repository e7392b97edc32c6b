/// What keeps a device in use.
package enum DeviceUse: Equatable {
  /// A file system. `namespace` names a process that sees the mount, if the asking process does not.
  case mounted(String, namespace: String? = nil)
  case swap
  /// Another block device on top: device mapper, md, bcache. `use` is what uses that one.
  case holder(String, use: String? = nil)
  /// Something in the kernel that has the disk open: a loop device, an iSCSI or NVMe target.
  case kernel(String, use: String? = nil)
  /// A process that has the disk or a partition open.
  case opened(process: Int32, name: String)
  /// A process that has the disk or a partition in its memory.
  case mapped(process: Int32, name: String)
  /// Claimed, or so it must be taken; the claimant could not be found.
  case claimed
  /// Open; the opener could not be found.
  case held

  var text: String {
    switch self {
    case .mounted(let place, nil): "mounted on \(place)"
    case .mounted(let place, let viewer?): "mounted on \(place) in the mount namespace of \(viewer)"
    case .swap: "swap space"
    case .holder(let name, let use): "part of \(name)" + Self.nested(use)
    case .kernel(let name, let use): "behind \(name)" + Self.nested(use)
    case .opened(let process, let name): "open in \(name) (process \(process))"
    case .mapped(let process, let name): "mapped in \(name) (process \(process))"
    case .claimed: "mounted or claimed"
    case .held: "open, in the kernel or in a process that could not be found"
    }
  }

  private static func nested(_ use: String?) -> String { use.map { " (\($0))" } ?? "" }

  /// Whether the use may end by itself in a moment: udev and others look at every disk that was
  /// written.
  var mayPass: Bool {
    switch self {
    case .opened, .held: true
    default: false
    }
  }

  /// How to end the use.
  var wayOut: String {
    switch self {
    case .mounted(let place, nil): "umount \(place) (or umount -l \(place))"
    case .mounted(let place, _): "umount \(place) there"
    case .swap: "swapoff"
    default: "end that"
    }
  }
}
