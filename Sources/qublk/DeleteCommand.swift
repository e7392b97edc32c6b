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
      written back; --force detaches it all the same, and what was not written is lost. A device \
      that is not there, or that another command has detached meanwhile, is an error.
      """,
    aliases: ["delete"])

  @Argument(help: "The devices: ID, ublkbID or /dev/ublkbID.")
  var devices: [DeviceName] = []

  @Flag(help: "All devices that qublk made. With --force those of other programs too.")
  var all = false

  @Flag(name: .shortAndLong, help: "Even if it is in use, or another program's.")
  var force = false

  func validate() throws {
    if all == devices.isEmpty { return }
    throw ValidationError(
      all ? "--all and named devices exclude each other" : "name a device, or add --all")
  }

  func run() throws {
    var errors: [CommandError] = []
    for device in try wanted() {
      do throws(CommandError) {
        try Deletion(device, isForced: force).run()
      } catch {
        errors.append(error)
      }
    }
    if let first = errors.first { throw errors.count == 1 ? first : .notStopped(errors) }
  }

  private func wanted() throws(CommandError) -> [DeviceName] {
    guard all else { return devices }
    return try DeviceList.read().filter { force || $0.isOurs }.map(\.name)
  }
}

extension DeviceName: ExpressibleByArgument {}

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
    if directory.hasDaemon {
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

  /// Refuses a device in use, and writes its page cache back while failing can still be undone.
  private func checkUnused() throws(CommandError) {
    if try ask(.stop(.check)) { try writePageCacheBack() }
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
    if try !ask(.stop(isForced ? .forced : .ifUnused)) { try deleteFromKernel() }
    if handle >= 0 { _ = waitReadable(handle, milliseconds: 10_000) }
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
      if let use = DeviceUse.findLasting(device) { throw .deadInUse(device, use) }
    }
    try control.end(device)
    guard !isForced else { return }
    if !wait(seconds: 10, until: { !control.knows(device) }) { throw .stillHeld(device) }
  }
}
