import ArgumentParser
import BlockCore
import CPlatform
import Glibc
import Ublk

/// `qublk del`: writes everything back, ends the daemon and the device.
struct DeleteCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "del", abstract: "Detach devices.",
    discussion: """
      A device that is mounted or open is refused, and so is one whose cached data cannot be \
      written back; --force detaches it all the same, and what was not written is lost.
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
    return try DeviceList.read().filter { force || $0.qublk != nil }.map(\.name)
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
    if directory.hasDaemon {
      if !isForced { try checkUnused() }
      try askDaemon()
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
    if let use = DeviceUse.findLasting(device) { throw .busy(device, use) }
    let descriptor = unsafe qublk_open_file(device.path, O_RDONLY, 0)
    guard descriptor >= 0 else { return }  // not started, or gone: the daemon knows better
    defer { close(descriptor) }
    if fsync(descriptor) < 0 { throw .lastFlush(device, Errno(errno)) }
  }

  private func askDaemon() throws(CommandError) {
    let process = directory.read()?.process
    let handle = process.map { qublk_pidfd_open($0) } ?? -1
    defer { if handle >= 0 { close(handle) } }
    let request: ControlRequest = isForced ? .stopForced : .stop
    switch ControlClient.ask(request, socket: directory.controlSocket) {
    case .done: break
    case .refused(let text), .failed(let text), .report(let text):
      throw .daemonRefused(device, text)
    case nil where isForced && DeviceList.kernelIDs().contains(device.id): try deleteFromKernel()
    case nil: throw .daemonLost(device)
    }
    if handle >= 0 { _ = waitReadable(handle, milliseconds: 10_000) }
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

  private func deleteFromKernel() throws(CommandError) {
    let control = try Control()
    let info = try control.info(device)
    if !isForced {
      if info.state == .live { throw .foreign(device, server: info.serverPID) }
      if let use = DeviceUse.findLasting(device) { throw .busy(device, use) }
    }
    try control.end(device, waitsForUsers: !isForced)
  }
}
