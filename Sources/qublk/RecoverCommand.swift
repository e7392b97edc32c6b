import ArgumentParser
import Daemon
import DiskImages

/// `qublk recover`: gives devices whose daemon and supervisor are gone a new daemon.
struct RecoverCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "recover", abstract: "Serve devices again whose daemon is gone.",
    discussion: """
      For devices that "qublk list" calls quiesced: their requests wait. A new daemon takes over, \
      with the options of "add", and carries all requests out that have waited, and those again that the \
      dead one had. What cannot be proven to be the same image is refused, and the device goes on waiting. \
      Devices whose supervisor lives recover by themselves. Prints the path of each device that is \
      served again.
      """)

  @Argument(help: "The devices: ID, ublkbID or /dev/ublkbID.")
  var devices: [DeviceReference] = []

  @Flag(help: "All devices of qublk that wait for a daemon.")
  var all = false

  @Option(
    help: """
      Serve with the sandbox, or without it: off is for a device whose daemons the sandbox has killed, and \
      leaves the next one all rights of root. (on, off; default: as the device was added)
      """)
  var sandbox: AddCommand.OnOff?

  @OptionGroup var secrets: SecretOptions

  func validate() throws { try DeviceReference.requireChoice(devices, all: all) }

  func run() throws {
    try DeviceReference.forEach(try wanted()) { (device) throws(CommandError) in
      let start = try Recovery(device).prepare(
        LayerSecrets(inOrder: try secrets.read()), version: Qublk.version,
        hasSandbox: sandbox.map { $0 == .on })
      try AddCommand.launch(start)
    }
  }

  private func wanted() throws -> [DeviceName] {
    guard all else { return try devices.map { try $0.device() } }
    return try DeviceList.read().filter(Recovery.isWanted).map(\.name)
  }
}
