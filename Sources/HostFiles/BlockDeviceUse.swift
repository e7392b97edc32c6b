import CPlatform
import Glibc

/// What keeps a block device from being opened exclusively; for messages.
package enum BlockDeviceUse: Equatable, Sendable {
  /// A file system is mounted from the device or from one of its partitions.
  case mounted(String)
  case swap
  /// Another block device on top: device mapper, md.
  case holder(String)
  /// A process that has the device open.
  case opened(process: Int32, name: String)
  /// Claimed by a user that could not be found out: a mount in another mount namespace, for one.
  case claimed

  /// The use and the way out.
  package var refusal: String { "block device is in use: \(text): stop that first" }

  private var text: String {
    switch self {
    case .mounted(let place): "mounted on \(place)"
    case .swap: "swap space"
    case .holder(let name): "part of \(name)"
    case .opened(let process, let name): "open in \(name) (process \(process))"
    case .claimed: "mounted elsewhere, or claimed by another program"
    }
  }

  /// Looks for what has claimed the device at `path`, its partitions, or the disk that it is a
  /// partition of.
  ///
  /// - Returns: ``claimed`` if nothing is found; nil if `path` is no block device.
  package static func find(_ path: String) -> BlockDeviceUse? {
    let device = unsafe qublk_block_device_at(path)
    guard device != 0 else { return nil }
    let family = BlockDeviceFamily(device)
    return mount(of: family) ?? swap(on: family) ?? holder(of: family) ?? opener(of: family)
      ?? .claimed
  }

  private static func mount(of family: BlockDeviceFamily) -> BlockDeviceUse? {
    for entry in MountTable.entries() {
      // Some file systems (btrfs) have a number of their own: their source tells.
      if family.contains(entry.device) || family.contains(deviceAt: entry.source) {
        return .mounted(entry.place)
      }
    }
    return nil
  }

  private static func swap(on family: BlockDeviceFamily) -> BlockDeviceUse? {
    for line in smallFile("/proc/swaps").split(separator: "\n").dropFirst() {
      let path = line.prefix { $0 != " " && $0 != "\t" }
      if family.contains(deviceAt: MountTable.unescaped(path)) { return .swap }
    }
    return nil
  }

  private static func holder(of family: BlockDeviceFamily) -> BlockDeviceUse? {
    for number in family.numbers.sorted() {
      if let holder = directoryEntries("/sys/dev/block/\(number)/holders").first {
        return .holder(holder)
      }
    }
    return nil
  }

  private static func opener(of family: BlockDeviceFamily) -> BlockDeviceUse? {
    for name in directoryEntries("/proc") {
      guard let process = Int32(name), process != getpid() else { continue }
      for entry in directoryEntries("/proc/\(process)/fd") {
        if family.contains(deviceAt: "/proc/\(process)/fd/\(entry)") {
          let program = smallFile("/proc/\(process)/comm").prefix { $0 != "\n" }
          return .opened(process: process, name: String(program))
        }
      }
    }
    return nil
  }
}

/// A block device, its partitions, and the disk that it is a partition of: a claim on one of them
/// may keep the device from being claimed.
struct BlockDeviceFamily {
  /// Device numbers as sysfs writes them, "259:0".
  private(set) var numbers: Set<String>

  init(_ device: UInt64) {
    let number = Self.text(device)
    let directory = "/sys/dev/block/\(number)"
    numbers = [number]
    for entry in directoryEntries(directory) {
      if unsafe access("\(directory)/\(entry)/partition", F_OK) == 0 {
        insert("\(directory)/\(entry)/dev")
      }
    }
    if unsafe access("\(directory)/partition", F_OK) == 0 { insert("\(directory)/../dev") }
  }

  private mutating func insert(_ file: String) {
    numbers.insert(String(smallFile(file).prefix { $0 != "\n" }))
  }

  func contains(_ number: String) -> Bool { numbers.contains(number) }

  /// Whether `path` names a block device of the family.
  func contains(deviceAt path: String) -> Bool {
    let device = unsafe qublk_block_device_at(path)
    return device != 0 && contains(Self.text(device))
  }

  private static func text(_ device: UInt64) -> String {
    "\(qublk_device_major(device)):\(qublk_device_minor(device))"
  }
}
