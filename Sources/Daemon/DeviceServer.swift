import BlockCore
import CPlatform
import DiskImages
import Glibc
import HostFiles
import Logging
import Uring

/// The life of a daemon, in order: image, lock, engine, device, state, ready.
///
/// Then it waits, and then all that is undone backwards. Runs on the control thread, which never
/// serves I/O.
package enum DeviceServer {
  /// Serves `request` until it is told to stop.
  ///
  /// - Throws: Whatever kept it from serving, or went wrong at the end.
  package static func run(
    _ request: AttachRequest, _ ready: ReadySignal
  ) throws(CommandError) {
    var loop = try ControlLoop()
    Hygiene.markAsStorageDaemon()
    let memory = MemoryLimit.current()
    try ServingNeeds.checkForStart(request, memory)
    let monitor = try EventMonitor(holdsRequests: request.noSpace != .fail)
    var request = request
    request.disk.events = monitor.events
    let disk = try request.openDisk()
    let reservation = try prepare(disk, &request, memory)
    // Now that it fits: a process that may not be killed would wait for memory for ever.
    let unprotected = Hygiene.protectMemory()
    let device = try ServedDevice(disk, request, monitor, &loop, reservation)
    try device.announce(ready, request)
    for failure in unprotected { Log.logger.warning("\(failure)") }
    for text in disk.warnings { Log.logger.warning("\(request.disk.name): \(text)") }
    if let memory, let limit = request.servingLimit {
      Log.logger.info(
        """
        \(memory.file) is \(memory.bytes) bytes: no more than \(limit) requests of a queue are served at \
        once, of those that need memory
        """)
    }
    for file in disk.files { file.dropPageCache() }
    try device.serve(loop)
  }

  /// What has to be in order before there is a device.
  ///
  /// - Returns: Room for the files of the device.
  private static func prepare(
    _ disk: any OpenDisk, _ request: inout AttachRequest, _ memory: MemoryLimit?
  ) throws(CommandError) -> StateReservation {
    do throws(CommandError) {
      try Control.checkDriver()
      try ServingNeeds.check(request)
      let reservation = try StateReservation()
      try Hygiene.liftTimeLimit()
      try Hygiene.enterPrivateMounts()
      try Hygiene.setIOFlusher()
      // Last, since asking the driver takes a thread.
      if let memory { try fit(&request, disk, in: memory) }
      return reservation
    } catch {
      // Nothing has been written: the reason for failing is the one to tell.
      try? disk.closeBlocking()
      throw error
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
