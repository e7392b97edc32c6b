import BlockCore
import CPlatform
import DiskImages
import Glibc
import HostFiles
import JSON
import Logging
import QCOW2Engine
import Reports
import Ublk

/// A device and everything that has to go with it when it goes.
final class ServedDevice: @unchecked Sendable {
  // why: after the start it does not change but by `stop`, which one thread runs at a time; meanwhile the
  // control thread reads counters and descriptors only.
  private let disk: any OpenDisk
  private let device: UblkDevice
  /// Requests that wait for space; nil if none ever do.
  private let hold: NoSpaceHold?
  private let directory: StateDirectory
  /// Held as long as the process lives.
  private let stateLock: Int32
  let name: DeviceName
  /// The path of what is served.
  private let path: String
  private let monitor: EventMonitor
  /// Runs jobs on the image.
  let jobs: LiveHost
  /// When counting began.
  private let start = MonotonicClock.nanoseconds()

  /// Creates the device and leaves its state; on failure neither is left, and the image is closed.
  init(
    _ disk: any OpenDisk, _ request: AttachRequest, _ monitor: EventMonitor,
    _ loop: inout ControlLoop, _ reservation: StateReservation
  ) throws(CommandError) {
    self.disk = disk
    path = request.path
    self.monitor = monitor
    hold = NoSpaceHold(request.noSpace)
    do throws(Errno) { jobs = try LiveHost(disk, path: request.path) } catch {
      try? disk.closeBlocking()  // nothing has been written
      throw .hygiene(.events, error)
    }
    do throws(UblkError) {
      device = try UblkDevice.create(disk.target, request.deviceOptions(disk, hold))
    } catch {
      try? disk.closeBlocking()  // the reason for failing is already known
      throw .device(error)
    }
    name = DeviceName(id: device.id)
    directory = StateDirectory(id: device.id)
    reservation.release()
    do throws(CommandError) { stateLock = try directory.claim(within: 30) } catch {
      // The directory is another's.
      Self.withdraw(device, disk)
      throw error
    }
    do throws(CommandError) {
      try directory.write(Self.state(device, disk, request))
      try loop.listen(at: directory.controlSocket)
      try ServingNeeds.checkDescriptors(ServingNeeds.spareDescriptors)
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
      version: request.version, queues: request.queues, depth: request.depth,
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
      try monitor.start(name, Self.state(device, disk, request), in: directory)
      try ready.give(request.printsJSON ? description(request).text : name.path)
      for warning in device.warnings { Log.logger.warning("\(name.path): \(warning.text)") }
    } catch {
      _ = stop(isForced: true)
      removeState()
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
      Log.logger.warning("\(file): cannot set \(scheduler): \(Errno(errno))")
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
      time: MonotonicClock.nanoseconds(), start: start, image: path,
      queues: device.statistics.map(QueueReport.init),
      engine: (disk as? DiskImage)?.engine.statistics.json ?? .null,
      events: monitor.events.summary.json, condition: monitor.condition)
  }
}

// MARK: The end

extension ServedDevice {
  /// Serves until the device is stopped.
  func serve(_ loop: consuming ControlLoop) throws(CommandError) {
    var service = DeviceService(self)
    try service.run(&loop)
  }

  var endedDescriptor: Int32 { device.endedDescriptor }
  var loss: UblkError? { device.loss }
  /// The answer to ``ControlRequest/stats``.
  var report: JSONValue { statistics.wire }

  /// What an administrator must know of the image; nil if nothing.
  var trouble: String? { monitor.trouble }

  /// Removes the state of a device that is gone.
  func forget(keepingLog: Bool) { removeState(keepingLog: keepingLog) }

  /// Carries out an attempt to stop the device.
  func stop(_ attempt: DeviceStop) -> DeviceStop.Outcome {
    switch attempt.manner {
    case .forced: break
    case .check, .ifUnused:
      if let use = DeviceUse.findLasting(name) { return .serving([.busy(name, use)]) }
      if attempt.manner == .check { return .unused }
    case .whenUnused:
      while DeviceUse.find(name) != nil {
        usleep(200_000)
        if !attempt.isWanted { return .serving([]) }
      }
    }
    guard attempt.beginStop() else { return .serving([]) }
    let errors = stop(isForced: attempt.manner == .forced)
    guard device.isServing else { return .ended(errors) }
    // Nobody waits for this attempt, and the next one begins at once.
    if attempt.manner == .whenUnused { sleep(1) }
    return .serving(errors)
  }

  /// Takes the state away, once all that has happened is in the log.
  private func removeState(keepingLog: Bool = false) {
    monitor.finish()
    directory.remove(keepingLog: keepingLog)
  }

  /// Has the driver stop the device.
  ///
  /// udev, or another command, may have looked at the disk at that moment: two seconds for that.
  private func stopInDriver(_ isForced: Bool) -> CommandError? {
    let deadline = Deadline(seconds: 2)
    while true {
      do throws(UblkError) {
        try device.stop(waitsForUsers: !isForced, ifUnused: !isForced) {
          Log.logger.warning(
            "\(name.path): still stopping: the host is slow with what is to be written")
        }
        return nil
      } catch {
        guard error.isInUse else { return .device(error) }
        let use = DeviceUse.find(name)
        if use.map(\.mayPass) != false, !deadline.hasPassed {
          usleep(20_000)
          continue
        }
        return .busy(name, use ?? .held)
      }
    }
  }

  /// Ends the device, then closes the image: every request the driver still had is in by then.
  ///
  /// - Parameter isForced: Does not wait for those who still have the disk open.
  /// - Returns: What went wrong. The image is closed all the same, unless the device still serves:
  ///   then nothing has changed.
  private func stop(isForced: Bool = false) -> [CommandError] {
    var errors: [CommandError] = []
    hold?.release()
    if let error = stopInDriver(isForced) { errors.append(error) }
    guard !device.isServing else {
      hold?.resume()
      return errors
    }
    jobs.finish()
    do throws(CommandError) { try disk.closeBlocking() } catch { errors.append(error) }
    return errors
  }
}
