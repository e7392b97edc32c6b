import BlockCore
import CPlatform
import DiskImages
import Glibc
import HostFiles
import Uring

/// The life of a daemon, in order: image, lock, engine, device, state, ready.
///
/// Then it waits, and then all that is undone backwards. Runs on the control thread, which never
/// serves I/O.
enum DeviceServer {
  /// Serves `request` until it is told to stop.
  ///
  /// - Throws: Whatever kept it from serving, or went wrong at the end.
  static func run(
    _ request: AttachRequest, _ ready: ReadySignal
  ) throws(CommandError) {
    var loop = try ControlLoop()
    let unprotected = Hygiene.protectMemory()
    let disk = try request.openDisk()
    try prepare(disk)
    let device = try ServedDevice(disk, request, &loop)
    try device.announce(ready, request)
    for failure in unprotected { Log.warning(failure) }
    for text in disk.warnings { Log.warning("\(request.disk.name): \(text)") }
    for file in disk.files { file.dropPageCache() }
    try device.serve(loop)
  }

  /// What has to be in order before there is a device.
  private static func prepare(_ disk: any OpenDisk) throws(CommandError) {
    do throws(CommandError) {
      try Control.checkDriver()
      try Hygiene.enterPrivateMounts()
      try Hygiene.setIOFlusher()
    } catch {
      // Nothing has been written: the reason for failing is the one to tell.
      try? disk.closeBlocking()
      throw error
    }
  }
}
