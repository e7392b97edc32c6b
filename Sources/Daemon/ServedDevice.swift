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
  // why: `announce` writes `sandbox` before there are clients; after the start nothing changes but by `stop`,
  // which one thread runs at a time; meanwhile the control thread reads counters and descriptors only.
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
  /// Says that the image is in use; nil where there is no record.
  private let use: InUseRecord?
  /// Runs jobs on the image.
  let jobs: LiveHost
  /// The parent, if it is one.
  let supervisor: SupervisorLink?
  private let surroundings: ServingSurroundings
  /// What is in force of the sandbox, by the names of its parts.
  private var sandbox: [String] = []
  /// When counting began.
  private let start = MonotonicClock.nanoseconds()

  /// Creates the device and leaves its state; on failure neither is left, and the image is closed.
  init(
    _ disk: any OpenDisk, _ request: AttachRequest, _ monitor: EventMonitor,
    _ loop: inout ControlLoop, _ jobs: LiveHost, _ reservation: StateReservation,
    _ use: InUseRecord?, _ surroundings: ServingSurroundings
  ) throws(CommandError) {
    self.disk = disk
    self.use = use
    self.surroundings = surroundings
    supervisor = surroundings.supervisor
    path = request.path
    self.monitor = monitor
    self.jobs = jobs
    hold = NoSpaceHold(request.noSpace)
    do throws(CommandError) {
      device = try surroundings.device(disk, request, request.deviceOptions(disk, hold))
    } catch {
      // The reason for failing is already known. The locks of a device that waits for its next daemon stay.
      if !surroundings.isRecovery { try? disk.closeBlocking() }
      throw error
    }
    jobs.serve(KernelCapacity(id: device.id))
    name = DeviceName(id: device.id)
    directory = StateDirectory(id: device.id)
    supervisor?.tell(name, isRecoverable: device.survivesServer)
    reservation.release()
    do throws(CommandError) { stateLock = try surroundings.lock(of: directory) } catch {
      // The directory is another's.
      Self.withdraw(device, disk)
      throw error
    }
    do throws(CommandError) {
      try directory.write(Self.state(device, disk, request, surroundings))
      try loop.listen(at: directory.controlSocket)
      try ServingNeeds.checkDescriptors(ServingNeeds.spareDescriptors)
    } catch {
      // A device that somebody uses is not taken away for that.
      if surroundings.isRecovery { throw error }
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
    _ device: UblkDevice, _ disk: any OpenDisk, _ request: AttachRequest,
    _ surroundings: ServingSurroundings
  ) -> DeviceState {
    var state = DeviceState(
      of: request, DeviceName(id: device.id), supervisor: surroundings.supervisor?.process)
    state.imageDevice = disk.identity.device
    state.imageInode = disk.identity.inode
    state.size = disk.target.size
    state.recovery = device.survivesServer ? surroundings.recovery : nil
    return state
  }

  /// Closes the sandbox, tells the user that the device can be used, and moves messages to the log.
  func announce(
    _ ready: ReadySignal, _ request: AttachRequest, _ sandbox: inout Sandbox
  ) throws(CommandError) {
    do throws(CommandError) {
      let appeared = wait(seconds: 10) { isBlockDevice(name.path) }
      guard appeared else { throw .noNode(name) }
      if !surroundings.isRecovery { setScheduler(request) }
      if ready.needsLog { try Log.redirect(orTo: directory.log) }
      let state = try enter(&sandbox, request)
      try monitor.start(name, state, in: directory)
      try ready.give(request.printsJSON ? description(request).text : name.path)
      supervisor?.tellServing()
      surroundings.manager?.tellReady()
      if surroundings.isRecovery { Log.logger.info("\(name.path): served again") }
      for warning in device.warnings { Log.logger.warning("\(name.path): \(warning.text)") }
    } catch {
      if surroundings.isRecovery { throw error }
      _ = stop(isForced: true)
      removeState()
      throw error
    }
  }

  /// Closes the sandbox to what a server opens later: its own files, the driver's control device, its disk,
  /// and the directory of its record.
  ///
  /// - Returns: What stands in the state file now.
  private func enter(
    _ sandbox: inout Sandbox, _ request: AttachRequest
  ) throws(CommandError) -> DeviceState {
    var state = Self.state(device, disk, request, surroundings)
    guard request.hasSandbox else { return state }
    try sandbox.close(to: directory, name, [use?.place].compactMap(\.self))
    self.sandbox = sandbox.parts.map(\.rawValue)
    state.sandbox = self.sandbox
    try directory.write(state)
    return state
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

  /// Has leaks returned in the background if a session has died with the image open.
  func returnLeaks(_ request: AttachRequest) {
    guard let use, let cause = use.found, request.returnsLeaks, !use.isSettledNow else { return }
    jobs.returnLeaks(of: name.path, cause.text) { use.noteSettled() }
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
      .init("recovery", .bool(device.survivesServer)),
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
      events: monitor.events.summary.json, condition: monitor.condition, sandbox: sandbox)
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
      if let use = DeviceUse.findLasting(by: findUse) {
        return .serving([.busy(name, use)])
      }
      if attempt.manner == .check { return .unused }
    case .whenUnused:
      while findUse() != nil {
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

  private func findUse() -> DeviceUse? {
    let reads = !device.survivesServer
    if let lookout = surroundings.lookout { return lookout.find(name, reads: reads) }
    return DeviceUse.find(name, reads: reads)
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
        let use = findUse()
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
    var isClosed = true
    do throws(CommandError) { try disk.closeBlocking() } catch {
      isClosed = false
      errors.append(error)
    }
    use?.end(isClean: isClosed)
    return errors
  }
}
