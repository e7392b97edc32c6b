import BlockCore
import CPlatform
import Daemon
import DiskImages
import Glibc
import HostFiles

/// A supervisor whose servers serve nothing, for SupervisorTests.
///
///     supervised IMAGE ID LOG
///
/// A server opens and locks IMAGE, takes the directory of device ID, and adds a line to LOG: "new" or
/// "again", its number, and whether it had to lock the image itself. SIGTERM ends it; while IMAGE.used
/// exists, it tells its supervisor that it is leaving, and adds "told" and its number to LOG. If
/// IMAGE.broken exists, it fails in place of a service that is to go on.
@main
struct Supervised {
  static func main() {
    let words = CommandLine.arguments
    guard words.count == 4, let id = UInt32(words[2]) else { exit(64) }
    let image = words[1]
    let log = words[3]
    let request = AttachRequest(
      path: image, format: .raw, nullSize: 0, disk: DiskImageOptions(path: image), id: id,
      queues: 1, depth: 8, isReadOnly: false, blockSize: 512, zeroCopy: .auto, zeroCopySlots: nil,
      batches: false, pollLimit: 0, scheduler: nil, dirtyAge: 1000, printsJSON: false,
      noSpace: .fail, version: "test")
    do throws(CommandError) {
      try Supervisor.run(ServerStart(request), ReadySignal()) {
        (start, _, link) throws(CommandError) in
        try serve(start, link, image, DeviceName(id: id), log)
      }
    } catch { exit(1) }
  }

  private static func serve(
    _ start: ServerStart, _ link: SupervisorLink, _ image: String, _ device: DeviceName,
    _ log: String
  ) throws(CommandError) {
    let signals = qublk_signals_open()
    let disk = try start.request.format.openBlocking(start.request.disk)
    let directory = StateDirectory(id: device.id)
    var word = "again"
    if case .new = start.mode {
      word = "new"
      link.hold(disk.files.map(\.descriptor))
      link.hold(lock: try directory.claim(within: 1))
    }
    link.tell(device, isRecoverable: true)
    if word == "again", access(image + ".broken", F_OK) == 0 { throw .noDevice(device) }
    try directory.write(DeviceState(of: start.request, device, supervisor: link.process))
    let line = "\(word) \(getpid()) \(start.request.disk.held == nil ? "locked" : "held")\n"
    add(line, to: log)
    link.tellServing()
    while true {
      _ = waitReadable(signals, milliseconds: -1)
      let signal = qublk_signals_next(signals)
      guard signal != 0 else { continue }
      if access(image + ".used", F_OK) < 0 { break }
      link.tell(leaving: signal)
      add("told \(getpid())\n", to: log)
    }
    try disk.closeBlocking()
    directory.remove()
  }

  private static func add(_ line: String, to log: String) {
    let descriptor = qublk_open_file(log, O_WRONLY | O_APPEND, 1)
    _ = writeAll(descriptor, line)
    close(descriptor)
  }
}
