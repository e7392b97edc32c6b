import BlockCore
import CPlatform
import DiskImages
import Glibc
import HostFiles
import Logging
import Ublk
import Uring

/// The life of a daemon, in order: image, lock, engine, device, state, ready.
///
/// Then it waits, and then all that is undone backwards. Runs on the control thread, which never
/// serves I/O.
package enum DeviceServer {
  /// Serves until it is told to stop.
  ///
  /// - Parameters:
  ///   - start: What is served, and whether the device is there already.
  ///   - ready: The message to the command that waits for the device.
  /// - Throws: Whatever kept it from serving, or went wrong at the end.
  package static func run(
    _ start: ServerStart, _ ready: ReadySignal
  ) throws(CommandError) {
    try run(start, ready, SupervisorLink?.none)
  }

  /// The same as the child of a supervisor.
  package static func run(
    _ start: ServerStart, _ ready: ReadySignal, _ supervisor: SupervisorLink
  ) throws(CommandError) {
    try run(start, ready, Optional(supervisor))
  }

  private static func run(
    _ start: ServerStart, _ ready: ReadySignal, _ supervisor: SupervisorLink?
  ) throws(CommandError) {
    var loop = try ControlLoop()
    Hygiene.markAsStorageDaemon()
    let memory = MemoryLimit.current()
    var request = start.request
    try ServingNeeds.checkForStart(request, memory)
    let lookout = try lookout(request)
    let monitor = try EventMonitor(holdsRequests: request.noSpace != .fail)
    request.disk.events = monitor.events
    let surroundings = ServingSurroundings(
      stored: request.stored, mode: start.mode, supervisor: supervisor, lookout: lookout,
      manager: ready.isForeground ? ServiceManager.connect() : nil)
    try surroundings.awaitOldServer()
    let disk = try request.openDisk()
    if request.disk.held == nil { supervisor?.hold(disk.files.map(\.descriptor)) }
    // Before the first allocation, and while all paths can be reached.
    let use = InUseRecord.begin(disk, request)
    let device: ServedDevice
    let unprotected: [String]
    var sandbox = Sandbox()
    do throws(CommandError) {
      let (jobs, reservation) = try prepare(
        disk, &request, memory, &sandbox, isRecovery: surroundings.isRecovery)
      // Now that it fits: a process that may not be killed would wait for memory for ever.
      unprotected = Hygiene.protectMemory()
      device = try ServedDevice(
        disk, request, monitor, &loop, jobs, reservation, use, surroundings)
    } catch {
      use?.withdraw()
      throw error
    }
    try device.announce(ready, request, &sandbox)
    for failure in unprotected { Log.logger.warning("\(failure)") }
    warn(of: sandbox, request)
    for text in disk.warnings { Log.logger.warning("\(request.disk.name): \(text)") }
    if let memory, let limit = request.servingLimit {
      Log.logger.info(
        """
        \(memory.file) is \(memory.bytes) bytes: no more than \(limit) requests of a queue are served at \
        once, of those that need memory
        """)
    }
    for (number, file) in disk.files.enumerated() {
      file.dropPageCache()
      // Jobs read the image's own bytes.
      if number > 0 { file.closeReader() }
    }
    device.returnLeaks(request)
    try device.serve(loop)
  }

  /// What a server in a sandbox needs beside it; before any image is open.
  private static func lookout(_ request: AttachRequest) throws(CommandError) -> UseLookout? {
    guard request.hasSandbox else { return nil }
    return try UseLookout.start { request.disk.secrets.dropAll() }
  }

  /// Tells of a sandbox that is not whole.
  private static func warn(of sandbox: borrowing Sandbox, _ request: AttachRequest) {
    if !request.hasSandbox {
      Log.logger.warning("--sandbox off: the daemon keeps all rights of the user who started it")
      return
    }
    // Before Linux 7.0 no kernel restricts rings, and Landlock stands in for that: no news.
    let news = sandbox.missing.filter { $0 != .rings || sandbox.missing.contains(.files) }
    if news.isEmpty { return }
    let names = news.map(\.text).joined(separator: ", ")
    Log.logger.info("sandbox: the kernel lacks \(names): the rest is in force")
  }

  /// What has to be in order before there is a device.
  ///
  /// - Returns: The host of jobs, and room for the files of the device.
  private static func prepare(
    _ disk: any OpenDisk, _ request: inout AttachRequest, _ memory: MemoryLimit?,
    _ sandbox: inout Sandbox, isRecovery: Bool
  ) throws(CommandError) -> (LiveHost, StateReservation) {
    do throws(CommandError) {
      try Control.checkDriver()
      if !isRecovery {
        let identity = disk.identity
        try Recovery.checkFree(
          request.disk.name, device: identity.device, inode: identity.inode,
          isReadOnly: request.isReadOnly)
      }
      let jobs = try openForLater(disk, request)
      try ServingNeeds.check(request)
      let reservation = try StateReservation()
      try Hygiene.liftTimeLimit()
      try Hygiene.enterPrivateMounts()
      try Hygiene.setIOFlusher()
      if disk.isEncrypted { try Hygiene.forbidCoreDump() }
      if request.hasSandbox { try sandbox.giveUpRights() }
      // Last, since asking the driver takes a thread.
      if let memory { try fit(&request, disk, in: memory) }
      request.recovery = try recovery(of: request)
      return (jobs, reservation)
    } catch {
      // Nothing has been written: the reason for failing is the one to tell. The locks of a device that
      // waits for its next daemon stay.
      if !isRecovery { try? disk.closeBlocking() }
      throw error
    }
  }

  /// Whether the device is to outlive its daemon: `on` or `off`.
  private static func recovery(
    of request: AttachRequest
  ) throws(CommandError) -> AttachRequest.Switch {
    switch request.recovery {
    case .off: return .off
    case .on:
      let missing = try Control().missingForRecovery()
      if !missing.isEmpty { throw .device(.lacks(missing)) }
      return .on
    case .auto:
      guard request.format.isRecoverable else { return .off }
      return try Control().missingForRecovery().isEmpty ? .on : .off
    }
  }

  /// Opens what is needed later, when a sandbox may forbid that.
  private static func openForLater(
    _ disk: any OpenDisk, _ request: AttachRequest
  ) throws(CommandError) -> LiveHost {
    if let image = disk.files.first {
      do throws(Errno) { try image.openReader() } catch {
        throw .file(request.disk.name, .open, error)
      }
    }
    // Of the others only the page cache is emptied, where that can be.
    for file in disk.files.dropFirst() where file.isDirect { try? file.openReader() }
    do throws(Errno) {
      return try LiveHost(disk, path: request.path, isConfined: request.hasSandbox)
    } catch {
      throw .hygiene(.events, error)
    }
  }

  /// Has the device take no more than a limit of memory, or refuses.
  private static func fit(
    _ request: inout AttachRequest, _ disk: any OpenDisk, in memory: MemoryLimit
  ) throws(CommandError) {
    var usesZeroCopy = false
    if request.zeroCopy != .off { usesZeroCopy = try Control().hasZeroCopy() }
    // What was counted on is not given up later.
    if usesZeroCopy { request.zeroCopy = .on }
    let need = MemoryNeed(request, disk, usesZeroCopy: usesZeroCopy)
    try need.check(memory)
    request.servingLimit = need.servingLimit(memory)
  }
}
