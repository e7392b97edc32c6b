import BlockCore
import CPlatform
import Glibc
import QCOW2Codec

/// What a serving process gives up, since serving does not need it (docs/decisions/0026).
///
/// An image comes from elsewhere. Should it lead the code that reads it astray, the process cannot open other
/// files, start programs, reach a network or other processes, or make code. The sandbox is closed in two steps:
/// ``giveUpRights()`` while the process has one thread, and ``close(to:_:)`` when everything that serving needs is
/// open. A part that the kernel lacks is left out; ``missing`` names it.
package struct Sandbox: ~Copyable {
  /// The parts, as `list` and `stats` name them.
  package enum Part: String, Sendable, CaseIterable {
    /// No program that is executed gains rights.
    case privileges = "no-new-privileges"
    /// All but ``Sandbox/keptCapabilities`` are gone.
    case capabilities
    /// The process is in a network of its own, without interfaces.
    case network
    /// Rings carry out only the operations that serving needs (Linux 7.0).
    case rings = "io-uring"
    /// Files are opened only where the daemon has its own (Linux 5.13).
    case files = "landlock"
    /// System calls that serving does not need are refused, and dangerous ones end the process.
    case calls = "seccomp"
  }

  /// The capabilities that stay.
  ///
  /// CAP_SYS_ADMIN: the driver asks for it at each control command. CAP_SYS_RESOURCE: threads mark
  /// themselves as part of the I/O path, and quotas of the image's owner do not fail a guest's writes.
  static let keptCapabilities: UInt64 = 1 << 21 | 1 << 24
  /// CAP_IPC_LOCK, where the limit of locked memory cannot be lifted.
  private static let lockMemory: UInt64 = 1 << 14

  /// What is in force.
  package private(set) var parts: [Part] = []
  /// What the kernel lacks.
  package private(set) var missing: [Part] = []

  /// Everything is as before.
  package init() {}

  /// The first step: for threads that are started from now on.
  ///
  /// The process must have one thread and no ring. What needs other rights than the kept ones must be open.
  ///
  /// - Throws: ``CommandError/sandbox(_:_:)``.
  package mutating func giveUpRights() throws(CommandError) {
    try enter(.privileges, qublk_give_up_new_privileges())
    let isReachable = qublk_landlock_prepare()
    if isReachable < 0 { throw .sandbox(.files, Errno(-isReachable)) }
    try enter(.network, qublk_leave_network())
    try enter(.rings, qublk_restrict_rings())
    let isLifted = qublk_lift_memory_lock_limit() == 0
    let kept = Self.keptCapabilities | (isLifted ? 0 : Self.lockMemory)
    try enter(.capabilities, qublk_keep_capabilities(kept))
  }

  /// The second step: for all threads.
  ///
  /// - Parameters:
  ///   - directory: The files of the device: the process may read and change them, and remove the directory.
  ///   - device: The process may read its disk.
  ///   - others: What else may be used.
  /// - Throws: ``CommandError/sandbox(_:_:)``. The process may be partly confined then, and must end.
  mutating func close(
    to directory: StateDirectory, _ device: DeviceName, _ others: [Place]
  ) throws(CommandError) {
    try close(
      to: [
        Place(directory.path, [.read, .write, .list, .change]),
        Place(StateDirectory.root, .removeDirectory),
        Place("/dev/ublk-control", [.read, .write, .control]),
        Place(device.path, [.read, .control]),
      ] + others)
  }

  /// A file or directory that may still be used by name.
  package struct Place {
    let path: String
    let rights: Rights

    /// For a directory, the rights hold for all that is below it.
    package init(_ path: String, _ rights: Rights) { (self.path, self.rights) = (path, rights) }

    /// What may be done at a place.
    package struct Rights: OptionSet, Sendable {
      package let rawValue: UInt64
      package init(rawValue: UInt64) { self.rawValue = rawValue }
      private init(_ value: some BinaryInteger) { rawValue = UInt64(value) }

      package static let read = Self(QUBLK_FILE_READ)
      package static let write = Self(QUBLK_FILE_WRITE)
      /// ioctl(2), as far as the filter of calls lets it through.
      package static let control = Self(QUBLK_DEVICE_CONTROL)
      package static let list = Self(QUBLK_DIRECTORY_LIST)
      /// Files and sockets are made and removed.
      package static let change = Self(QUBLK_DIRECTORY_CHANGE)
      package static let removeFile = Self(QUBLK_FILE_REMOVE)
      package static let removeDirectory = Self(QUBLK_DIRECTORY_REMOVE)
    }
  }

  /// The second step, with the places named one by one.
  package mutating func close(to places: [Place]) throws(CommandError) {
    // No code can be loaded from then on.
    CodecLibraries.load()
    try enter(.files, Self.restrictFiles(to: places))
    try enter(.calls, qublk_filter_calls())
  }

  private static func restrictFiles(to places: [Place]) -> Int32 {
    let version = qublk_landlock_version()
    if version < 0 { return version }
    let rules = qublk_landlock_begin(version)
    if rules < 0 { return rules }
    defer { Glibc.close(rules) }
    for place in places {
      let result = unsafe qublk_landlock_allow(rules, version, place.path, place.rights.rawValue)
      if result < 0 { return result }
    }
    return qublk_landlock_enter(rules)
  }

  /// Notes what came of a part.
  private mutating func enter(_ part: Part, _ result: Int32) throws(CommandError) {
    if result >= 0 { return parts.append(part) }
    guard part.isLacking(Errno(-result)) else { throw .sandbox(part, Errno(-result)) }
    missing.append(part)
  }
}

extension Sandbox.Part {
  /// Whether an error says that the kernel does not have the part.
  fileprivate func isLacking(_ error: Errno) -> Bool {
    switch self {
    case .privileges, .capabilities: false
    case .network, .calls: [EINVAL, ENOSYS].contains(error.code)
    // Where only single rings can be restricted, -1 is no descriptor.
    case .rings: [EINVAL, ENOSYS, EBADF].contains(error.code)
    case .files: [ENOSYS, EOPNOTSUPP].contains(error.code)
    }
  }

  /// What the part does, for the log of a daemon that lacks it.
  var text: String {
    switch self {
    case .privileges: "no new privileges"
    case .capabilities: "reduced capabilities"
    case .network: "a network of its own"
    case .rings: "restricted rings"
    case .files: "Landlock"
    case .calls: "seccomp filters"
    }
  }
}
