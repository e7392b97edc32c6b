import ArgumentParser
import Daemon
import Glibc

/// A device as a command line names it: by number, by node, or by the image that it is.
struct DeviceReference: ExpressibleByArgument {
  /// As it was written.
  let text: String

  init(argument: String) { text = argument }

  /// Finds the device.
  ///
  /// - Throws: What is wrong with the name.
  func device() throws(ValidationError) -> DeviceName {
    if let name = DeviceName(argument: text) { return name }
    if let disk = Self.disk(ofPartition: text) {
      throw ValidationError("\"\(text)\" is a partition: name its device, \(disk.path)")
    }
    if let served = ServedImage.find(text) { return served.device }
    if unsafe access(text, F_OK) == 0 {
      throw ValidationError(
        "\"\(text)\" is not the image of a device: \"qublk list\" shows which are attached")
    }
    throw ValidationError(
      "\"\(text)\" is not a device: expected ID, ublkbID, /dev/ublkbID, or an image that is attached"
    )
  }

  /// Refuses a command line that names no device and has no `--all`, or has both.
  static func requireChoice(_ devices: [DeviceReference], all: Bool) throws(ValidationError) {
    if all == devices.isEmpty { return }
    throw ValidationError(
      all ? "--all and named devices exclude each other" : "name a device, or add --all")
  }

  /// Runs `body` for each device, also behind one for which it fails.
  ///
  /// - Throws: The error of the only device that failed, or all errors together.
  static func forEach(
    _ devices: [DeviceName], _ body: (DeviceName) throws(CommandError) -> Void
  ) throws(CommandError) {
    var errors: [CommandError] = []
    for device in devices {
      do throws(CommandError) { try body(device) } catch { errors.append(error) }
    }
    if let first = errors.first { throw errors.count == 1 ? first : .notStopped(errors) }
  }

  /// The disk of a partition's node, "ublkb0p1" with or without its directory.
  private static func disk(ofPartition text: String) -> DeviceName? {
    guard let mark = text.lastIndex(of: "p"), text.contains("ublkb"),
      let number = UInt32(text[text.index(after: mark)...]), number > 0
    else { return nil }
    return DeviceName(argument: String(text[..<mark]))
  }
}
