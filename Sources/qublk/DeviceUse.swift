import CPlatform
import Glibc
import HostFiles

/// What keeps a device in use.
enum DeviceUse: Equatable {
  case mounted(String)
  case swap
  /// Another block device on top: device mapper, md.
  case holder(String)
  /// A process that has the disk or a partition open.
  case opened(process: Int32, name: String)
  /// Claimed, or so it must be taken; by whom could not be found out.
  case claimed

  var text: String {
    switch self {
    case .mounted(let place): "mounted on \(place)"
    case .swap: "swap space"
    case .holder(let name): "part of \(name)"
    case .opened(let process, let name): "open in \(name) (process \(process))"
    case .claimed: "mounted or claimed"
    }
  }
}

extension DeviceUse {
  /// Like ``find(_:)``, but gives a process that has the disk open two seconds to close it: udev
  /// and others have a short look at every disk that was written.
  static func findLasting(_ device: DeviceName) -> DeviceUse? {
    let deadline = Deadline(seconds: 2)
    while true {
      let use = find(device)
      guard case .opened = use, !deadline.hasPassed else { return use }
      usleep(20_000)
    }
  }

  /// What uses the disk or one of its partitions now; nil if nothing does.
  ///
  /// A claim (mount, swap, device mapper) in whatever mount namespace is found by asking for one
  /// (O_EXCL), plain openers by /proc. A partition's claim counts as one of the disk.
  static func find(_ device: DeviceName) -> DeviceUse? {
    let descriptor = unsafe qublk_open_file(device.path, O_RDONLY | O_EXCL | O_NONBLOCK, 0)
    let error = descriptor < 0 ? errno : 0
    if descriptor >= 0 { close(descriptor) }
    switch error {
    // Without memory or descriptors nothing is known: better in use than pulled away.
    case EBUSY, EMFILE, ENFILE, ENOMEM, EINTR, EIO: return claim(device)
    default: return opener(device)
    }
  }

  /// The device numbers of the disk and its partitions, as "259:0".
  private static func numbers(_ device: DeviceName) -> Set<String> {
    let directory = "/sys/class/block/\(device.disk)"
    let partitions = directoryEntries(directory).filter { $0.hasPrefix("\(device.disk)p") }
    let files = ["\(directory)/dev"] + partitions.map { "\(directory)/\($0)/dev" }
    return Set(files.map { String(smallFile($0).prefix { $0 != "\n" }) })
  }

  private static func number(_ device: UInt64) -> String {
    "\(qublk_device_major(device)):\(qublk_device_minor(device))"
  }

  private static func claim(_ device: DeviceName) -> DeviceUse {
    let numbers = numbers(device)
    for line in smallFile("/proc/self/mountinfo").split(separator: "\n") {
      let fields = line.split(separator: " ")
      if fields.count > 4, numbers.contains(String(fields[2])) {
        return .mounted(MountTable.unescaped(fields[4]))
      }
    }
    let swaps = smallFile("/proc/swaps").split(separator: "\n")
    if swaps.contains(where: { $0.hasPrefix(device.path) }) { return .swap }
    for disk in directoryEntries("/sys/class/block") where disk.hasPrefix(device.disk) {
      if let holder = directoryEntries("/sys/class/block/\(disk)/holders").first {
        return .holder(holder)
      }
    }
    return .claimed
  }

  private static func opener(_ device: DeviceName) -> DeviceUse? {
    let numbers = numbers(device)
    for name in directoryEntries("/proc") {
      guard let process = Int32(name), process != getpid() else { continue }
      for entry in directoryEntries("/proc/\(process)/fd") {
        var status = stat()
        guard unsafe stat("/proc/\(process)/fd/\(entry)", &status) == 0,
          status.st_mode & S_IFMT == S_IFBLK,
          numbers.contains(number(UInt64(status.st_rdev)))
        else { continue }
        let program = smallFile("/proc/\(process)/comm").prefix { $0 != "\n" }
        return .opened(process: process, name: String(program))
      }
    }
    return nil
  }
}
