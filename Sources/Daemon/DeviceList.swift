import BlockCore
import Glibc
import HostFiles
import Ublk

/// One device, from what the kernel and its daemon's state file say.
package struct ListedDevice {
  /// What the kernel and /run/qublk say of it.
  package enum State: String {
    case live, dead
    /// Its daemon is gone, and requests wait.
    case quiesced
    /// Its daemon has died, and its supervisor starts another.
    case recovering
    /// A signal has stopped its server: requests wait until it is continued.
    case stopped
    /// Its server is gone and requests fail.
    case failing = "fail-io"
    /// Left in /run/qublk; the kernel has no such device.
    case stale
    /// In a state that is new to qublk, or the kernel would not say.
    case unknown
  }

  /// As the kernel knows it.
  package let name: DeviceName
  /// How it fares.
  package var state: State
  /// nil for another program's device.
  package var qublk: DeviceState?
  /// Bytes; from the kernel where it has the disk.
  package var size: UInt64?
  /// Nil if the kernel does not say.
  package var queues: Int?
  /// Nil if the kernel does not say.
  package var depth: Int?
  /// The server, if there is one.
  package var process: Int32?

  /// Whether qublk made it: its state says so, or, if that is lost, the name of its server.
  package var isOurs: Bool { qublk != nil || process.map(DeviceList.isQublk) ?? false }

  /// Why requests wait, and the way out; nil if they do not.
  package var waitReason: String? {
    switch state {
    case .recovering: return qublk?.recovery?.reason
    case .quiesced:
      let recovery = qublk?.recovery
      let reason = recovery?.phase == .quiesced ? recovery?.reason : nil
      return (reason ?? "its daemon is gone")
        + (recovery == nil ? "" : ": \"qublk recover \(name.id)\" starts another")
    case .live, .dead, .stopped, .failing, .stale, .unknown: return nil
    }
  }

  /// The state as it is shown to people: of a device that is served, what is wrong with it, if anything
  /// is.
  package var stateText: String {
    guard state == .live, let condition = qublk?.condition, condition != .good else {
      return state.rawValue
    }
    return condition.rawValue
  }
}

/// The ublk devices of this machine.
package enum DeviceList {
  /// Whether a process runs qublk, by its name.
  package static func isQublk(_ process: Int32) -> Bool {
    smallFile("/proc/\(process)/comm").prefix { $0 != "\n" } == "qublk"
  }

  /// The ids that the kernel has, in order.
  package static func kernelIDs() -> [UInt32] {
    directoryEntries("/sys/class/ublk-char").compactMap { name in
      name.hasPrefix("ublkc") ? UInt32(name.dropFirst("ublkc".count)) : nil
    }.sorted()
  }

  /// The ids that the kernel has or a state was left for, in order.
  static func ids() -> [UInt32] { Set(kernelIDs()).union(StateDirectory.known()).sorted() }

  /// Every device, ours and others, the dead and the stale too.
  ///
  /// - Throws: If there are devices that the kernel cannot be asked about.
  package static func read() throws(CommandError) -> [ListedDevice] {
    let present = kernelIDs()
    let control = present.isEmpty ? nil : try Control()
    var devices: [ListedDevice] = []
    for id in ids() {
      let directory = StateDirectory(id: id)
      let state = directory.read()
      if present.contains(id), let control {
        let info = try? control.info(DeviceName(id: id))
        devices.append(describe(DeviceName(id: id), info, directory))
      } else if let state, !directory.hasDaemon {
        devices.append(stale(state))
      }
    }
    return devices
  }

  private static func describe(
    _ name: DeviceName, _ info: DeviceInfo?, _ directory: StateDirectory
  ) -> ListedDevice {
    let isLive = info?.state == .live
    var state = info.map(ListedDevice.State.init) ?? .unknown
    if isLive, let info, ProcessState(of: info.serverPID).isStopped { state = .stopped }
    let qublk = owner(directory, isLive: isLive)
    if isRecovering(qublk, directory), state == .live || state == .quiesced { state = .recovering }
    return ListedDevice(
      name: name, state: state, qublk: qublk, size: diskSize(name), queues: info?.queues,
      depth: info?.depth, process: state == .live || state == .stopped ? info?.serverPID : nil)
  }

  private static func isRecovering(_ state: DeviceState?, _ directory: StateDirectory) -> Bool {
    switch state?.recovery?.phase {
    case .recovering, .fetching: directory.hasDaemon
    case .serving, .quiesced, nil: false
    }
  }

  /// The state in `directory` if it is that of the kernel's device: a live one that no daemon of
  /// ours serves is another program's, whatever an earlier daemon left under the same number.
  private static func owner(_ directory: StateDirectory, isLive: Bool) -> DeviceState? {
    guard let state = directory.read(), state.boot == Boot.id else { return nil }
    return !isLive || directory.hasDaemon ? state : nil
  }

  private static func stale(_ state: DeviceState) -> ListedDevice {
    ListedDevice(
      name: DeviceName(id: state.id), state: .stale, qublk: state, size: state.size,
      queues: state.queues, depth: state.depth)
  }

  /// The disk's size as the kernel has it: sysfs counts in 512 bytes whatever the block size.
  private static func diskSize(_ name: DeviceName) -> UInt64? {
    let text = smallFile("/sys/class/block/\(name.disk)/size").prefix { $0 != "\n" }
    return UInt64(text).map { $0 * 512 }
  }
}

extension ListedDevice.State {
  init(_ info: DeviceInfo) {
    switch info.state {
    case .dead: self = .dead
    case .live: self = .live
    case .quiesced: self = .quiesced
    case .failIO: self = .failing
    case .unknown: self = .unknown
    }
  }
}
