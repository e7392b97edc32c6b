import ArgumentParser
import BlockCore
import Daemon
import Glibc
import HostFiles
import JSON
import Reports

/// `qublk stats`: what a device has done, from the counters that its daemon keeps anyway.
struct StatsCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "stats", abstract: "Show what a device has done.",
    discussion: """
      Counts since the device was added, and latencies from the driver's request to the answer. Looking \
      costs the device nothing. With --watch, the first report is of the device's life so far, each \
      further one of the time since the one before.
      """)

  @Argument(
    help: ArgumentHelp(
      "The device: ID, ublkbID, /dev/ublkbID, or its image.", valueName: "device"))
  var reference: DeviceReference

  @Flag(help: "Print a JSON object; with --watch, one a report.")
  var json = false

  @Option(help: "Report again and again, every so many seconds, until interrupted.")
  var watch: Double?

  func validate() throws {
    if let watch, !(watch >= 0.1 && watch <= 86400) {
      throw ValidationError("--watch is \(watch), expected 0.1 to 86400")
    }
  }

  func run() throws {
    let device = try reference.device()
    let first = try ask(device)
    try show(first, device, seconds: nil)
    guard let watch else { return }
    var last = first
    while true {
      usleep(useconds_t(watch.truncatingRemainder(dividingBy: 1) * 1e6))
      sleep(UInt32(watch))
      let next = try ask(device)
      if let difference = next.since(last) {
        try show(difference, device, seconds: Double(next.time - last.time) / 1e9)
      } else {
        try show(next, device, seconds: nil)
      }
      last = next
    }
  }

  private func ask(_ device: DeviceName) throws(CommandError) -> DeviceReport {
    let directory = StateDirectory(id: device.id)
    guard directory.hasDaemon else {
      guard DeviceList.kernelIDs().contains(device.id) else { throw .noDevice(device) }
      throw .noDaemon(device)
    }
    guard let result = try DeviceDaemon(device).ask(.stats) else {
      throw DeviceList.kernelIDs().contains(device.id)
        ? .daemonLost(device) : .goneMeanwhile(device)
    }
    guard let report = DeviceReport(wire: result) else {
      throw .otherVersion(device, process: directory.read()?.process ?? 0)
    }
    return report
  }

  private func show(
    _ report: DeviceReport, _ device: DeviceName, seconds: Double?
  ) throws(CommandError) {
    let gap = seconds == nil ? "" : "\n"
    let text =
      json
      ? report.json(device, seconds: seconds).text + "\n"
      : gap + StatsTable(device: device, report: report, seconds: seconds).text
    guard writeAll(STDOUT_FILENO, text) else { throw .output(Errno(errno)) }
  }
}
