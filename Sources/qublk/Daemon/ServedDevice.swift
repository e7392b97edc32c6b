import BlockCore
import CPlatform
import DiskImages
import Glibc
import HostFiles
import QCOW2Engine
import Ublk

/// A device and everything that has to go with it when it goes.
final class ServedDevice {
  private let disk: any OpenDisk
  private let device: UblkDevice
  /// Requests that wait for space; nil if none ever do.
  private let hold: NoSpaceHold?
  private let directory: StateDirectory
  /// Held as long as the process lives.
  private let stateLock: Int32
  private let name: DeviceName
  /// The path of what is served.
  private let path: String
  /// When counting began.
  private let start = NanosecondClock.now()

  /// Creates the device and leaves its state; on failure neither is left, and the image is closed.
  init(
    _ disk: any OpenDisk, _ request: AttachRequest, _ loop: inout ControlLoop
  ) throws(CommandError) {
    self.disk = disk
    path = request.path
    hold = NoSpaceHold(request.noSpace, name: request.path)
    do throws(UblkError) {
      device = try UblkDevice.create(disk.target, request.deviceOptions(disk, hold))
    } catch {
      try? disk.closeBlocking()  // the reason for failing is already known
      throw .device(error)
    }
    name = DeviceName(id: device.id)
    directory = StateDirectory(id: device.id)
    do throws(CommandError) { stateLock = try directory.claim(within: 30) } catch {
      // The directory is another's.
      Self.withdraw(device, disk)
      throw error
    }
    do throws(CommandError) {
      try directory.write(Self.state(device, disk, request))
      try loop.listen(at: directory.controlSocket)
    } catch {
      Self.withdraw(device, disk)
      directory.remove()
      throw error
    }
  }

  /// Takes back a device that nobody has heard of; the reason is already known.
  private static func withdraw(_ device: UblkDevice, _ disk: any OpenDisk) {
    try? device.stop()
    // Not under workers: should the driver refuse, the end of the process is the safer end.
    if !device.isServing { try? disk.closeBlocking() }
  }

  private static func state(
    _ device: UblkDevice, _ disk: any OpenDisk, _ request: AttachRequest
  ) -> DeviceState {
    DeviceState(
      id: device.id, image: request.path, imageDevice: disk.identity.device,
      imageInode: disk.identity.inode, process: getpid(), boot: Boot.id,
      version: Qublk.version, queues: request.queues, depth: request.depth,
      size: disk.target.size, isReadOnly: request.isReadOnly, started: Int64(time(nil)))
  }

  /// Tells the user that the device can be used, and moves messages to the log.
  func announce(
    _ ready: ReadySignal, _ request: AttachRequest
  ) throws(CommandError) {
    do throws(CommandError) {
      let appeared = wait(seconds: 10) { isBlockDevice(name.path) }
      guard appeared else { throw .noNode(name) }
      setScheduler(request)
      if !ready.isForeground { try Log.redirect(orTo: directory.log) }
      try ready.give(request.printsJSON ? description(request).text : name.path)
      for warning in device.warnings { Log.warning("\(name.path): \(warning.text)") }
    } catch {
      _ = stop()
      directory.remove()
      throw error
    }
  }

  /// Requests gain nothing from waiting in a scheduler, and it costs more than all the rest of the
  /// way: docs/decisions/0011.
  private func setScheduler(_ request: AttachRequest) {
    guard let scheduler = request.scheduler else { return }
    let file = "/sys/block/\(name.path.dropFirst("/dev/".count))/queue/scheduler"
    let descriptor = unsafe qublk_open_file(file, O_WRONLY, 0)
    if descriptor < 0 || !writeAll(descriptor, scheduler) {
      Log.warning("\(file): cannot set \(scheduler): \(Errno(errno))")
    }
    if descriptor >= 0 { close(descriptor) }
  }

  private func description(_ request: AttachRequest) -> JSONValue {
    .object([
      .init("device", .string(name.path)),
      .init("id", .integer(Int64(device.id))),
      .init("image", .string(request.path)),
      .init("size", .integer(Int64(clamping: disk.target.size))),
      .init("queues", .integer(Int64(request.queues))),
      .init("depth", .integer(Int64(request.depth))),
      .init("read-only", .bool(request.isReadOnly)),
      .init("zero-copy", .bool(device.usesZeroCopy)),
      .init("batch", .bool(device.usesBatches)),
      .init("pid", .integer(Int64(getpid()))),
    ])
  }
}

// MARK: Statistics

extension ServedDevice {
  /// What the device has done until now; reads counters only.
  private var statistics: DeviceReport {
    DeviceReport(
      time: NanosecondClock.now(), start: start, image: path,
      queues: device.statistics.map(QueueReport.init),
      engine: (disk as? DiskImage)?.engine.statistics.json ?? .null)
  }
}

// MARK: Waiting, and the end

extension ServedDevice {
  /// Waits for a reason to stop, and stops.
  ///
  /// A signal while the device is in use does not stop it: a file system on it would lose what
  /// it has not written, so it is served until it is released [UBLK-25]; a second signal insists.
  func serve(_ loop: borrowing ControlLoop) throws(CommandError) {
    var isLeaving = false
    while true {
      switch loop.next(ended: device.endedDescriptor, milliseconds: isLeaving ? 200 : -1) {
      case .ended:
        if let loss = device.loss { return try stopAfterLoss(loss) }
        if try stopAfterSignal() { return }
      case .signal(let number):
        if !isLeaving, let use = DeviceUse.findLasting(name) {
          isLeaving = true
          Log.warning(
            "\(name.path): \(use.text): serving until that ends; signal \(number) again to insist")
        } else {
          if try stopAfterSignal(isForced: isLeaving && DeviceUse.findLasting(name) != nil) {
            return
          }
          isLeaving = false
        }
      case .timeout:
        if DeviceUse.find(name) != nil { continue }
        if try stopAfterSignal() { return }
        isLeaving = false
      case .request(let connection) where connection.request == .stats:
        connection.reply(.report(statistics.wire.text))
      case .request(let connection):
        let isForced = connection.request == .stopForced
        if !isForced, let use = DeviceUse.findLasting(name) {
          connection.reply(.refused(CommandError.busy(name, use).text))
        } else {
          let (reply, hasEnded) = stopAfterRequest(isForced: isForced)
          connection.reply(reply)
          if hasEnded { return }
        }
      }
    }
  }

  /// False if the device still serves.
  private func stopAfterSignal(isForced: Bool = false) throws(CommandError) -> Bool {
    let errors = stop(isForced: isForced)
    if device.isServing {
      for error in errors { Log.error("\(error.text): serving on") }
      return false
    }
    directory.remove(keepingLog: !errors.isEmpty)
    if !errors.isEmpty { throw .notStopped(errors) }
    return true
  }

  /// Requests of a lost queue wait in the driver, and so do those who sent them: nothing is gained by
  /// waiting for its users.
  private func stopAfterLoss(_ loss: UblkError) throws(CommandError) {
    Log.error("\(name.path): \(loss.text): stopping the device")
    let errors = stop(isForced: true)
    directory.remove(keepingLog: true)
    throw .notStopped(errors + [.lost(name, loss)])
  }

  private func stopAfterRequest(isForced: Bool) -> (ControlReply, hasEnded: Bool) {
    let errors = stop(isForced: isForced)
    let reply: ControlReply =
      errors.isEmpty ? .done : .failed(errors.map(\.text).joined(separator: "; "))
    if device.isServing { return (reply, false) }
    directory.remove()
    return (reply, true)
  }

  /// Ends the device, then closes the image: every request the driver still had is in by then.
  ///
  /// - Parameter isForced: Does not wait for those who still have the disk open.
  /// - Returns: What went wrong. The image is closed all the same, unless the device still serves:
  ///   then nothing has changed, but that requests are no longer held for want of space.
  private func stop(isForced: Bool = false) -> [CommandError] {
    var errors: [CommandError] = []
    hold?.release()
    do throws(UblkError) {
      try device.stop(waitsForUsers: !isForced) {
        Log.warning("\(name.path): still stopping: the host is slow with what is to be written")
      }
    } catch {
      errors.append(.device(error))
    }
    if device.isServing { return errors }
    do throws(CommandError) { try disk.closeBlocking() } catch { errors.append(error) }
    return errors
  }
}
