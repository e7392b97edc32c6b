import CPlatform
import Glibc

/// Stops a device from a process that does not serve it.
///
/// A server that dies inside its own STOP_DEV, while the host is slow, keeps /dev/ublkcN open for as long as
/// the kernel works on the command, and the command waits for requests that nobody serves any more. A
/// process without /dev/ublkcN can die at any moment.
package protocol OutsideStop: Sendable {
  /// Has the device stopped, as ``DeviceStopWork/run(_:ifUnused:isRecoverable:)`` does.
  ///
  /// - Parameters:
  ///   - ifUnused: Refuse while anyone has the disk open.
  ///   - keepsWaiting: Asked every second: false gives up waiting, not the stop.
  /// - Returns: The answer; nil if there is no other process that could stop it.
  func stop(ifUnused: Bool, keepsWaiting: () -> Bool) -> StopAnswer?
}

/// What came of ``OutsideStop``.
package enum StopAnswer: Equatable, Sendable {
  case stopped
  /// The errno of the driver.
  case refused(Int32)
  /// `keepsWaiting` said no.
  case abandoned
}

/// The work of stopping a device, wherever it runs.
package enum DeviceStopWork {
  /// Stops a device; returns when the disk is gone.
  ///
  /// The driver fails all requests of a device that outlives its server from the moment of STOP_DEV on.
  /// So what the system has cached is written back first, while the server serves. TRY_STOP_DEV succeeds
  /// only if nobody has the disk open; then nothing is cached.
  ///
  /// - Parameters:
  ///   - id: The device.
  ///   - ifUnused: Has the driver refuse with EBUSY while anyone has the disk open.
  ///   - isRecoverable: The device was made with ``DeviceFeatures/recovery``.
  ///   - keepsWaiting: Asked every second.
  /// - Throws: ``UblkError``; the device serves on.
  package static func run(
    _ id: UInt32, ifUnused: Bool, isRecoverable: Bool, keepsWaiting: () -> Bool = { true }
  ) throws(UblkError) {
    try run(
      ControlDevice(), id, ifUnused: ifUnused, isRecoverable: isRecoverable,
      keepsWaiting: keepsWaiting)
  }

  static func run(
    _ control: ControlDevice, _ id: UInt32, ifUnused: Bool, isRecoverable: Bool,
    keepsWaiting: () -> Bool
  ) throws(UblkError) {
    if isRecoverable && !ifUnused { writeBack(id) }
    try control.unlessGone { () throws(UblkError) in
      try control.stop(id, ifUnused: ifUnused, deadline: 1000, keepsWaiting: keepsWaiting)
    }
  }

  /// Has the system write back what it has cached for the disk, its partitions, and file systems on them.
  ///
  /// Best effort: whoever is told that a write is durable has waited for it before.
  static func writeBack(_ id: UInt32) {
    let disk = "ublkb\(id)"
    var names = [disk]
    // The disk comes last: its partitions lie on it.
    if let directory = unsafe opendir("/sys/class/block/\(disk)") {
      defer { unsafe closedir(directory) }
      while let entry = unsafe readdir(directory) {
        let name = unsafe withUnsafePointer(to: &entry.pointee.d_name) {
          unsafe $0.withMemoryRebound(to: CChar.self, capacity: 256) { unsafe String(cString: $0) }
        }
        if name.hasPrefix(disk + "p") { names.insert(name, at: 0) }
      }
    }
    for name in names { _ = unsafe qublk_write_block_device_back("/dev/\(name)") }
  }
}
