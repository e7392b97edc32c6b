import ArgumentParser
import BlockCore
import CPlatform
import Daemon
import Glibc
import HostFiles
import Ublk

/// `qublk del`: writes everything back, ends the daemon and the device.
struct DeleteCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "del", abstract: "Detach devices.",
    discussion: """
      A device that is mounted or open is refused, and so is one whose cached data cannot be \
      written back; --force detaches it all the same, and what was not written is lost. So is a \
      device that is in use and waits for a daemon ("qublk recover" starts one); with --force the \
      requests that wait fail. A device \
      that is not there, or that another command has detached meanwhile, is an error.
      """,
    aliases: ["delete"])

  @Argument(help: "The devices: ID, ublkbID, /dev/ublkbID, or the image of one.")
  var devices: [DeviceReference] = []

  @Flag(help: "All devices that qublk made. With --force those of other programs too.")
  var all = false

  @Flag(name: .shortAndLong, help: "Even if it is in use, or another program's.")
  var force = false

  func validate() throws { try DeviceReference.requireChoice(devices, all: all) }

  func run() throws {
    try DeviceReference.forEach(try wanted()) { (device) throws(CommandError) in
      try Deletion(device, isForced: force).run()
    }
  }

  private func wanted() throws -> [DeviceName] {
    guard all else { return try devices.map { try $0.device() } }
    return try DeviceList.read().filter { force || $0.isOurs }.map(\.name)
  }
}

/// The end of one device.
private struct Deletion {
  let device: DeviceName
  let isForced: Bool
  let directory: StateDirectory

  init(_ device: DeviceName, isForced: Bool) {
    self.device = device
    self.isForced = isForced
    directory = StateDirectory(id: device.id)
  }

  func run() throws(CommandError) {
    if try isWaiting() {
      try deleteWaiting()
    } else if directory.hasDaemon {
      if !isForced { try checkUnused() }
      let trouble = directory.read()?.trouble
      try askDaemon()
      // It has ended well, and yet something had happened.
      if let trouble { _ = writeAll(STDERR_FILENO, "qublk: \(device.path): \(trouble)\n") }
    } else {
      try deleteDirectly()
    }
    let isGone = wait(seconds: 10) {
      unsafe access(device.path, F_OK) != 0 && access(device.serverPath, F_OK) != 0
    }
    if !isGone { throw .leftBehind(device) }
  }

  /// Whether the device waits for a daemon that does not come by itself; one that comes is waited for.
  private func isWaiting() throws(CommandError) -> Bool {
    guard directory.hasDaemon else { return false }
    var phase = DeviceState.Recovery.Phase.serving
    _ = wait(seconds: isForced ? 0 : 60) {
      phase = directory.read()?.recovery?.phase ?? .serving
      return phase == .serving || phase == .quiesced
    }
    return phase != .serving
  }

  /// Deletes a device whose supervisor has no daemon; what waits in the driver fails.
  private func deleteWaiting() throws(CommandError) {
    if !isForced {
      guard directory.read()?.recovery?.phase == .quiesced else { throw .daemonLost(device) }
      try checkNothingWaits()
      guard let process = directory.read()?.supervisor, let supervisor = SupervisorProcess(process),
        supervisor.end(within: 10)
      else { throw .daemonLost(device) }
      return try deleteDirectly()
    }
    // The supervisor ends when it finds the device stopped; one that has given up is told to.
    let supervisor = directory.read()?.supervisor.flatMap { SupervisorProcess($0) }
    try Control().end(device)
    if let supervisor, !supervisor.end(within: 10) { throw .daemonLost(device) }
    removeDirectory()
  }

  /// Refuses to delete a device that waits for its daemon while that would lose something.
  private func checkNothingWaits() throws(CommandError) {
    if let use = DeviceUse.findUnserved(device) { throw .waitsForRecovery(device, use) }
  }

  /// Refuses a device in use, and writes its page cache back while failing can still be undone.
  private func checkUnused() throws(CommandError) {
    guard try ask(.stop(.check)) else { return }
    // What its daemon must not find out by itself.
    if directory.read()?.recovery != nil, let use = DeviceUse.findLasting(device) {
      throw .busy(device, use)
    }
    try writePageCacheBack()
  }

  private func writePageCacheBack() throws(CommandError) {
    let descriptor = unsafe qublk_open_file(device.path, O_RDONLY, 0)
    guard descriptor >= 0 else { return }  // not started, or gone: the daemon knows better
    defer { close(descriptor) }
    guard fsync(descriptor) < 0 else { return }
    let error = Errno(errno)
    if !DeviceList.kernelIDs().contains(device.id) { throw .goneMeanwhile(device) }
    // The daemon may be about to write down what has just failed.
    _ = wait(seconds: 1) { directory.read()?.trouble != nil }
    throw .lastFlush(device, error, trouble: directory.read()?.trouble)
  }

  private func askDaemon() throws(CommandError) {
    let process = directory.read()?.process
    let handle = process.map { qublk_pidfd_open($0) } ?? -1
    defer { if handle >= 0 { close(handle) } }
    let supervisor = directory.read()?.supervisor.flatMap { SupervisorProcess($0) }
    var loss: CommandError?
    do throws(CommandError) {
      if try !ask(.stop(isForced ? .forced : .ifUnused)) { try deleteFromKernel() }
    } catch {
      // A daemon that refuses serves on. One that is forced tells of a loss and ends: until then it has the image open.
      guard isForced else { throw error }
      loss = error
    }
    if handle >= 0 { _ = waitReadable(handle, milliseconds: 10_000) }
    if let supervisor { supervisor.waitForEnd(seconds: 10) }
    if let loss { throw loss }
  }

  /// Has the daemon answer.
  ///
  /// - Returns: Whether it has carried out the request; if not, the driver is to be asked instead.
  private func ask(_ request: ControlRequest) throws(CommandError) -> Bool {
    let daemon = DeviceDaemon(device)
    // One of an earlier version writes everything back, too, when the driver stops its device.
    if isForced, !daemon.speaksThisProtocol { return false }
    if try daemon.ask(request) != nil { return true }
    // Another command may have stopped it a moment ago: then it goes, or has gone.
    let isGone = wait(seconds: 2) { !DeviceList.kernelIDs().contains(device.id) }
    if isGone { throw .goneMeanwhile(device) }
    if isForced { return false }
    throw .daemonLost(device)
  }

  /// A device without a daemon of ours: dead, another program's, or only a state that was left.
  private func deleteDirectly() throws(CommandError) {
    if DeviceList.kernelIDs().contains(device.id) {
      try deleteFromKernel()
    } else if !StateDirectory.known().contains(device.id) {
      throw .noDevice(device)
    }
    removeDirectory()
  }

  /// Removes what is left in /run/qublk.
  private func removeDirectory() {
    // A new device may have the number by now, and its daemon the directory.
    guard let lock = try? directory.claim(within: 0) else { return }
    directory.remove()
    close(lock)
  }

  /// Ends a daemon of qublk whose files in /run/qublk are lost, its socket among them: by SIGTERM, at which
  /// it writes everything back.
  private func endDaemonWithoutFiles(_ process: Int32) throws(CommandError) {
    let handle = qublk_pidfd_open(process)
    guard handle >= 0 else { throw .stillServed(device, process: process) }
    defer { close(handle) }
    if let use = DeviceUse.findLasting(device) { throw .busy(device, use) }
    try writePageCacheBack()
    guard kill(process, SIGTERM) == 0, waitReadable(handle, milliseconds: 60_000) else {
      throw .stillServed(device, process: process)
    }
  }

  private func deleteFromKernel() throws(CommandError) {
    let control = try Control()
    let info = try control.info(device)
    if !isForced {
      if info.state == .live {
        guard DeviceList.isQublk(info.serverPID) else {
          throw .foreign(device, server: info.serverPID)
        }
        return try endDaemonWithoutFiles(info.serverPID)
      }
      if info.state == .quiesced {
        try checkNothingWaits()
      } else if let use = DeviceUse.findLasting(device) {
        throw .deadInUse(device, use)
      }
    }
    try control.end(device)
    guard !isForced else { return }
    if !wait(seconds: 10, until: { !control.knows(device) }) { throw .stillHeld(device) }
  }
}
