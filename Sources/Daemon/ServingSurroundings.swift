import BlockCore
import DiskImages
import HostFiles
import JSON
import Logging
import Ublk

/// What a server has beside its request and its image: a supervisor, and perhaps a device that was there
/// before it.
struct ServingSurroundings {
  /// The request as the state file has it; made while the passphrases are still there to be counted.
  let stored: JSONValue
  let mode: ServerStart.Mode
  let supervisor: SupervisorLink?
  /// Finds users of the device where the server cannot; nil if it can.
  let lookout: UseLookout?
  /// Waits to hear that the device is ready; nil if nobody does.
  let manager: ServiceManager?

  /// Whether the device was there before.
  var isRecovery: Bool {
    if case .recover = mode { true } else { false }
  }

  /// What the state file says of a device that outlives its server.
  var recovery: DeviceState.Recovery {
    DeviceState.Recovery(phase: .serving, request: stored)
  }

  /// Waits, before the image is opened, until the driver has let go of a dead server: what that one had in
  /// flight may still change the image until then.
  func awaitOldServer() throws(CommandError) {
    guard case .recover(let name, _) = mode else { return }
    do throws(UblkError) {
      try UblkDevice.awaitOldServer(name.id) { Self.noteWait(name) }
    } catch { throw .device(error) }
    // The thread that asked is on its way out; a mount namespace is made by a process with one thread.
    _ = wait(seconds: 5) { directoryEntries("/proc/self/task").count <= 1 }
  }

  private static func noteWait(_ name: DeviceName) {
    Log.logger.warning(
      "\(name.path): the host is still at work for the daemon that has died: waiting for it")
  }

  /// Makes the device, or takes the place of its server.
  func device(
    _ disk: any OpenDisk, _ request: AttachRequest, _ options: DeviceOptions
  ) throws(CommandError) -> UblkDevice {
    var options = options
    options.outsideStop = supervisor
    do throws(UblkError) {
      guard case .recover(let name, _) = mode else {
        return try UblkDevice.create(disk.target, options)
      }
      return try recover(name, disk, options)
    } catch { throw .device(error) }
  }

  private func recover(
    _ name: DeviceName, _ disk: any OpenDisk, _ options: DeviceOptions
  ) throws(UblkError) -> UblkDevice {
    var options = options
    options.survivesServer = true
    return try UblkDevice.recover(name.id, disk.target, options) {
      Self.noteWait(name)
    } beforeFetch: { isLastChance in
      guard isLastChance else { return }
      // A supervisor that finds this after another death must not go on: see `FetchGate`.
      StateDirectory(id: name.id).update { $0.phase = .fetching }
    }
  }

  /// The lock of the device's directory.
  func lock(of directory: StateDirectory) throws(CommandError) -> Int32 {
    guard case .recover(_, let lock) = mode else {
      let lock = try directory.claim(within: 30)
      supervisor?.hold(lock: lock)
      return lock
    }
    directory.removeSocket()
    return lock
  }
}
