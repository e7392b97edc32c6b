package import BlockCore
import CPlatform
package import DiskImages
import Glibc
import HostFiles
import JSON
import Ublk

/// Why a device is not given a new daemon.
///
/// The device stays as it is.
package enum RecoveryRefusal: Equatable {
  /// The state file is missing, damaged, or of another layout.
  case noState
  /// The state file was written before the machine was started.
  case otherBoot
  /// The device was added with `--recovery off`, or by a program that cannot.
  case notEnabled
  /// The daemon lives.
  case served(process: Int32)
  /// A supervisor is at it.
  case underWay(supervisor: Int32)
  /// The driver does not wait for a daemon.
  case state(String)
  /// What is at the image's path now is another file; `stat` numbers.
  case otherImage(String, found: String, expected: String)
  case imageGone(String, Errno)
  /// A daemon died at a moment at which the kernel takes no other one.
  case lastDaemonDied
  /// So many passphrases were given to `add`.
  case passphrases(found: Int, expected: Int)

  var text: String {
    switch self {
    case .noState:
      "its state file is missing or cannot be read, so it is not known how it was served"
    case .otherBoot: "its state file is from before the last start of the machine"
    case .notEnabled: "it was added without --recovery"
    case .served(let process): "process \(process) serves it"
    case .underWay(let supervisor): "its supervisor, process \(supervisor), is at it"
    case .state(let state): "its state is \(state), expected quiesced"
    case .otherImage(let path, let found, let expected):
      "\(path) is another file than the device's image: device:inode \(found), expected \(expected)"
    case .imageGone(let path, let errno): "its image \(path): \(errno)"
    case .lastDaemonDied:
      "a daemon died just as it took over, after which kernels before Linux 6.16 take no other one"
    case .passphrases(let found, let expected):
      "it was added with \(expected) passphrases, found \(found): give them by --secret-file, "
        + "--secret-fd or --secret-keyring"
    }
  }
}

/// Gives a device whose daemon and supervisor are gone a new daemon: `qublk recover`.
package struct Recovery {
  let device: DeviceName
  private let directory: StateDirectory

  /// The recovery of this device.
  package init(_ device: DeviceName) {
    self.device = device
    directory = StateDirectory(id: device.id)
  }

  /// Whether a device waits for `qublk recover`.
  package static func isWanted(_ device: ListedDevice) -> Bool {
    device.isOurs && device.state == .quiesced
  }

  /// The start for a request that names a device of this very image which waits for a daemon: what a
  /// service manager does that starts `add` again.
  ///
  /// - Parameter request: What `add` would do.
  /// - Returns: Nil if there is no such device.
  /// - Throws: Why a device that is there is not recovered.
  package static func start(
    instead request: AttachRequest
  ) throws(CommandError) -> ServerStart? {
    guard let id = request.id, DeviceList.kernelIDs().contains(id),
      let state = StateDirectory(id: id).read(), state.boot == Boot.id, state.recovery != nil,
      state.image == request.path
    else { return nil }
    return try Recovery(DeviceName(id: id)).prepare(
      request.disk.secrets, version: request.version)
  }

  /// Refuses an image that belongs to a device which waits for a daemon.
  static func checkFree(
    _ path: String, device: UInt64, inode: UInt64, isReadOnly: Bool
  ) throws(CommandError) {
    guard inode != 0 else { return }
    let present = DeviceList.kernelIDs()
    let boot = Boot.id
    for id in StateDirectory.known() where present.contains(id) {
      let directory = StateDirectory(id: id)
      guard let state = directory.read(), state.boot == boot, state.recovery != nil,
        state.imageDevice == device, state.imageInode == inode,
        !(isReadOnly && state.isReadOnly), !directory.hasDaemon
      else { continue }
      throw .imageWaits(path, DeviceName(id: id))
    }
  }

  /// Checks what can be checked without a change, and takes the device's directory.
  ///
  /// - Parameters:
  ///   - secrets: The passphrases of the image, in the order of `add`.
  ///   - version: The version of this program.
  ///   - hasSandbox: Whether the daemon gives up what serving does not need; nil: as `add` had it.
  /// - Returns: What a supervisor is to be started with.
  /// - Throws: ``CommandError/recoveryRefused(_:_:)``, and what else keeps it from being done.
  package func prepare(
    _ secrets: LayerSecrets, version: String, hasSandbox: Bool? = nil
  ) throws(CommandError) -> ServerStart {
    guard DeviceList.kernelIDs().contains(device.id) else { throw .noDevice(device) }
    let state = try readState()
    guard let recovery = state.recovery,
      var request = AttachRequest(stored: recovery.request, id: device.id, version: version)
    else { throw .recoveryRefused(device, .noState) }
    try checkDriver(recovery.phase)
    if recovery.phase == .fetching { throw .recoveryRefused(device, .lastDaemonDied) }
    try check(state, request)
    try check(secrets, recovery.request)
    request.disk.secrets = secrets
    if let hasSandbox { request.hasSandbox = hasSandbox }
    let lock = try takeDirectory(recovery.phase, state.supervisor ?? 0)
    // The thread that asked the driver is on its way out; what follows must be alone in the process.
    _ = wait(seconds: 5) { directoryEntries("/proc/self/task").count <= 1 }
    return ServerStart(request, recover: device, lock: lock)
  }

  private func readState() throws(CommandError) -> DeviceState {
    guard let state = directory.read(), state.id == device.id else {
      throw .recoveryRefused(device, .noState)
    }
    guard state.boot == Boot.id else { throw .recoveryRefused(device, .otherBoot) }
    guard state.recovery != nil else { throw .recoveryRefused(device, .notEnabled) }
    return state
  }

  /// Waits for a daemon that is on its way out.
  private func checkDriver(_ phase: DeviceState.Recovery.Phase) throws(CommandError) {
    let control = try Control()
    var info = try control.info(device)
    if info.state == .live, info.serverPID > 0, phase == .serving, directory.hasDaemon,
      kill(info.serverPID, 0) == 0
    {
      throw .recoveryRefused(device, .served(process: info.serverPID))
    }
    let isOver = wait(seconds: 5) {
      guard let now = try? control.info(device) else { return true }
      info = now
      return now.state != .live
    }
    if !isOver, info.serverPID > 0 {
      throw .recoveryRefused(device, .served(process: info.serverPID))
    }
    // A daemon that died with the driver's answer on its way is still called live; the driver decides.
    guard info.state == .quiesced || info.state == .live else {
      throw .recoveryRefused(device, .state(ListedDevice.State(info).rawValue))
    }
  }

  /// Refuses if the image's path leads to another file than the one that was served.
  private func check(_ state: DeviceState, _ request: AttachRequest) throws(CommandError) {
    guard request.format != .null else { return }
    var status = stat()
    guard unsafe stat(request.disk.path, &status) == 0 else {
      throw .recoveryRefused(device, .imageGone(request.disk.path, Errno(errno)))
    }
    let found = "\(status.st_dev):\(status.st_ino)"
    let expected = "\(state.imageDevice):\(state.imageInode)"
    guard found == expected else {
      throw .recoveryRefused(
        device, .otherImage(request.disk.path, found: found, expected: expected))
    }
  }

  private func check(_ secrets: LayerSecrets, _ request: JSONValue) throws(CommandError) {
    let expected = request["disk"]?["passphrases"]?.integer ?? 0
    guard secrets.count == Int(expected) else {
      throw .recoveryRefused(device, .passphrases(found: secrets.count, expected: Int(expected)))
    }
  }

  /// Has a supervisor that has given up leave, and takes the directory's lock.
  private func takeDirectory(
    _ phase: DeviceState.Recovery.Phase, _ supervisor: Int32
  ) throws(CommandError) -> Int32 {
    if directory.hasDaemon, let process = SupervisorProcess(supervisor) {
      guard phase == .quiesced, process.end(within: 5) else {
        throw .recoveryRefused(device, .underWay(supervisor: supervisor))
      }
    }
    return try directory.claim(within: 5, keepsState: true)
  }
}

/// A supervisor, as other processes see it.
package struct SupervisorProcess: ~Copyable {
  private let process: Int32
  private let handle: Int32

  /// The supervisor with this number; nil if there is none, or it is another program by now.
  package init?(_ process: Int32) {
    guard process > 0 else { return nil }
    let handle = qublk_pidfd_open(process)
    guard handle >= 0 else { return nil }
    let name = smallFile("/proc/\(process)/comm").prefix { $0 != "\n" }
    guard name == LockHolder.supervisorName else {
      close(handle)
      return nil
    }
    self.process = process
    self.handle = handle
  }

  deinit { close(handle) }

  /// Tells it to end.
  ///
  /// It does so if it has given up, or another process has stopped its device; else its server gets the signal.
  package func end(within seconds: Double) -> Bool {
    _ = kill(process, SIGTERM)
    return waitForEnd(seconds: seconds)
  }

  /// Whether it ends by itself soon.
  @discardableResult
  package func waitForEnd(seconds: Double) -> Bool {
    waitReadable(handle, milliseconds: Int32(seconds * 1000))
  }
}
