import BlockCore
import CPlatform
import Glibc
import HostFiles
import Uring

/// The life of a daemon, in order: image, lock, engine, device, state, ready; then waiting; then
/// the same backwards. Runs on the control thread, which never serves I/O.
enum DeviceServer {
  /// Serves `request` until it is told to stop.
  ///
  /// - Throws: Whatever kept it from serving, or went wrong at the end.
  static func run(
    _ request: AttachRequest, _ ready: ReadySignal
  ) throws(CommandError) {
    var loop = try ControlLoop()
    try Hygiene.enterPrivateMounts()
    let unprotected = Hygiene.protectMemory()
    let image = try AttachedImage(request)
    Hygiene.detachOtherMounts()
    try Control.checkDriver()
    try Hygiene.setIOFlusher()
    let device = try ServedDevice(image, request, &loop)
    try device.announce(ready, request)
    for failure in unprotected { Log.warning(failure) }
    try device.serve(loop)
  }
}
