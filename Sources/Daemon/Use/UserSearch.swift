import CPlatform
import Glibc
import HostFiles

/// The search for the users of a disk and its partitions by name, in /proc and /sys.
///
/// A user is known by the device's number. Of a dead device the kernel has no number any more: its users
/// are known by the name of the node that they opened.
struct UserSearch {
  private let disk: String
  /// The device numbers of the disk and its partitions, as "259:0"; empty for a dead device.
  private let numbers: Set<String>

  init(_ device: DeviceName) { self.init(disk: device.disk) }

  private init(disk: String) {
    self.disk = disk
    let directory = "/sys/class/block/\(disk)"
    let partitions = directoryEntries(directory).filter { $0.hasPrefix(disk) }
    let files = ["\(directory)/dev"] + partitions.map { "\(directory)/\($0)/dev" }
    numbers = Set(files.map(line).filter { !$0.isEmpty })
  }

  /// Whether a path ends in the name of the disk or of a partition; of a node that was removed, too.
  func isOurs(path: some StringProtocol) -> Bool {
    var name = path[...]
    for mark in [" (deleted)", "//deleted"] where name.hasSuffix(mark) {
      name = name.dropLast(mark.count)
    }
    if let slash = name.lastIndex(of: "/") { name = name[name.index(after: slash)...] }
    guard name.hasPrefix(disk) else { return false }
    let rest = name.dropFirst(disk.count)
    return rest.isEmpty
      || rest.first == "p" && rest.count > 1 && rest.dropFirst().allSatisfy(\.isNumber)
  }

  /// Whether a path leads to a block device that is ours.
  private func isOurNode(_ path: String) -> Bool {
    let number = unsafe qublk_block_device_at(path)
    return number != 0
      && numbers.contains("\(qublk_device_major(number)):\(qublk_device_minor(number))")
  }

  private static func isBlockDevice(_ path: String) -> Bool {
    unsafe qublk_block_device_at(path) != 0
  }
}

/// The first line of a small file.
private func line(_ path: String) -> String {
  String(smallFile(path).prefix { $0 != "\n" })
}

/// A process as messages name it.
private func name(_ process: Int32) -> String { line("/proc/\(process)/comm") }

private func processes() -> [Int32] { directoryEntries("/proc").compactMap { Int32($0) } }

// MARK: Claims

extension UserSearch {
  /// Who has claimed the disk or a partition.
  func claimant() -> DeviceUse? { mount() ?? swap() ?? holder() }

  /// A mount, of our own namespace if there is one.
  private func mount() -> DeviceUse? {
    if let place = mount(in: "/proc/self/mountinfo") { return .mounted(place) }
    var seen: Set<String> = [namespace("/proc/self/ns/mnt")]
    for process in processes() {
      guard seen.insert(namespace("/proc/\(process)/ns/mnt")).inserted,
        let place = mount(in: "/proc/\(process)/mountinfo")
      else { continue }
      // A daemon sees as little of the mounts as possible; the first process sees what users see.
      return .mounted(
        place, namespace: process == 1 ? nil : "\(name(process)) (process \(process))")
    }
    return nil
  }

  private func namespace(_ link: String) -> String {
    var status = stat()
    return unsafe stat(link, &status) == 0 ? String(status.st_ino) : ""
  }

  private func mount(in file: String) -> String? {
    for line in smallFile(file).split(separator: "\n") {
      let fields = line.split(separator: " ")
      guard fields.count > 4 else { continue }
      // After optional fields: a hyphen, the type, the source.
      let hyphen = fields.firstIndex(of: "-") ?? fields.endIndex
      let source = hyphen + 2 < fields.count ? fields[hyphen + 2] : ""
      let isOurSource = source.hasPrefix("/dev/") && isOurs(path: MountTable.unescaped(source))
      if numbers.contains(String(fields[2])) || isOurSource {
        return MountTable.unescaped(fields[4])
      }
    }
    return nil
  }

  private func swap() -> DeviceUse? {
    let lines = smallFile("/proc/swaps").split(separator: "\n").dropFirst()
    let isSwap = lines.contains { line in
      let file = MountTable.unescaped(line.prefix { $0 != " " && $0 != "\t" })
      return file.hasPrefix("/dev/") && isOurs(path: file)
    }
    return isSwap ? .swap : nil
  }

  /// A disk that is made of ours.
  private func holder() -> DeviceUse? {
    for upper in directoryEntries("/sys/block") where upper != disk {
      let parts = directoryEntries("/sys/block/\(upper)/slaves")
      if parts.contains(where: { isOurs(path: $0) }) {
        return .holder(upper, use: Self.use(of: upper))
      }
    }
    for name in directoryEntries("/sys/class/block") where isOurs(path: name) {
      if let upper = directoryEntries("/sys/class/block/\(name)/holders").first {
        return .holder(upper, use: Self.use(of: upper))
      }
    }
    for system in directoryEntries("/sys/fs/btrfs") {
      let parts = directoryEntries("/sys/fs/btrfs/\(system)/devices")
      if parts.contains(where: { isOurs(path: $0) }) { return .holder("btrfs \(system)") }
    }
    return nil
  }

  /// What a disk on top of ours is used for, in words.
  private static func use(of disk: String) -> String? { UserSearch(disk: disk).claimant()?.text }
}

// MARK: Openers

extension UserSearch {
  /// Who has the disk or a partition open without a claim.
  func opener() -> DeviceUse? {
    if let use = kernelOpener() { return use }
    var supervisor: DeviceUse?
    for process in processes() where process != getpid() {
      if opens(process) {
        let use = DeviceUse.opened(process: process, name: name(process))
        // What a supervisor holds is its daemon's, which comes later.
        guard name(process) == LockHolder.supervisorName else { return use }
        supervisor = supervisor ?? use
      }
      if maps(process) { return .mapped(process: process, name: name(process)) }
    }
    return supervisor
  }

  /// Files of /sys that hold the path of what the kernel has open, and the names that messages give it:
  /// a prefix, and the component of the file's path with this number.
  private static let backings = [
    (pattern: "/sys/block/loop*/loop/backing_file", component: 2, prefix: ""),
    (pattern: "/sys/block/zram*/backing_dev", component: 2, prefix: ""),
    (
      pattern: "/sys/kernel/config/target/core/*/*/udev_path", component: 6, prefix: "target "
    ),
    (
      pattern: "/sys/kernel/config/nvmet/subsystems/*/namespaces/*/device_path", component: 5,
      prefix: "nvmet "
    ),
    (
      pattern: "/sys/kernel/config/usb_gadget/*/functions/*/lun.*/file", component: 4,
      prefix: "USB gadget "
    ),
  ]

  private func kernelOpener() -> DeviceUse? {
    for backing in Self.backings {
      for file in Self.matches(backing.pattern) {
        let path = line(file)
        guard path.hasPrefix("/") else { continue }
        // A path of another mount namespace may lead nowhere here.
        guard isOurNode(path) || path.hasPrefix("/dev/") && isOurs(path: path) else { continue }
        let components = file.split(separator: "/")
        let name = String(components[backing.component])
        return .kernel(backing.prefix + name, use: Self.use(of: name))
      }
    }
    return nil
  }

  private static func matches(_ pattern: String) -> [String] {
    var found = unsafe glob_t()
    defer { unsafe globfree(&found) }
    guard unsafe glob(pattern, 0, nil, &found) == 0 else { return [] }
    return unsafe (0..<Int(found.gl_pathc)).compactMap { index in
      unsafe found.gl_pathv[index].map { unsafe String(cString: $0) }
    }
  }

  private func opens(_ process: Int32) -> Bool {
    directoryEntries("/proc/\(process)/fd").contains { entry in
      let link = "/proc/\(process)/fd/\(entry)"
      return isOurNode(link) || numbers.isEmpty && isOursByName(link)
    }
  }

  /// Each line: the range of addresses, rights, offset, device, inode, path.
  private func maps(_ process: Int32) -> Bool {
    smallFile("/proc/\(process)/maps").split(separator: "\n").contains { line in
      guard let start = line.firstIndex(of: "/"), isOurs(path: line[start...]) else { return false }
      let link = "/proc/\(process)/map_files/\(line.prefix { $0 != " " })"
      return isOurNode(link) || numbers.isEmpty && Self.isBlockDevice(link)
    }
  }

  private func isOursByName(_ link: String) -> Bool {
    guard let path = linkTarget(link) else { return false }
    return isOurs(path: path) && Self.isBlockDevice(link)
  }
}
