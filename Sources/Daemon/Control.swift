import BlockCore
import CPlatform
import Glibc
package import Ublk

/// /dev/ublk-control, for the commands: devices by name, errors as commands report them.
package struct Control {
  private let device: ControlDevice

  /// Finds out whether the driver is there and may be used, before anything is changed for it.
  static func checkDriver() throws(CommandError) {
    let descriptor = unsafe qublk_open_file("/dev/ublk-control", O_RDWR, 0)
    if descriptor < 0 { throw .device(.noControlDevice(Errno(errno))) }
    close(descriptor)
  }

  /// Opens the control device.
  package init() throws(CommandError) {
    do throws(UblkError) { device = try ControlDevice() } catch { throw .device(error) }
  }

  /// Whether the driver moves data without copies, if that is left to it.
  func hasZeroCopy() throws(CommandError) -> Bool {
    do throws(UblkError) {
      return try UblkDevice.zeroCopy(.automatic, device.features())
    } catch { throw .device(error) }
  }

  /// What the driver lacks of ``DeviceFeatures/recovery``.
  ///
  /// Drivers before Linux 6.16 always lack something: after a daemon that dies just as it takes over they
  /// take no other one, and Linux 6.12 was seen to panic when daemons were killed at their start.
  func missingForRecovery() throws(CommandError) -> DeviceFeatures {
    do throws(UblkError) {
      return try DeviceFeatures.recovery.union(.quiesce).subtracting(device.features())
    } catch {
      throw .device(error)
    }
  }

  /// What the driver says of a device.
  package func info(_ name: DeviceName) throws(CommandError) -> DeviceInfo {
    do throws(UblkError) { return try device.info(name.id) } catch { throw .device(error) }
  }

  /// Stops and deletes a device whose server is gone or is not asked.
  ///
  /// A server that lives deletes its device when it finds it stopped, and may be the first. The
  /// driver forgets the device when the last user has left.
  package func end(_ name: DeviceName) throws(CommandError) {
    do throws(UblkError) {
      try device.unlessGone { () throws(UblkError) in try device.stop(name.id) }
      try device.unlessGone { () throws(UblkError) in
        try device.delete(name.id, asynchronously: true)
      }
    } catch {
      throw .device(error)
    }
  }

  /// Whether the driver still knows a device.
  package func knows(_ name: DeviceName) -> Bool {
    do throws(UblkError) { _ = try device.info(name.id) } catch {
      if case .refused(_, .noDevice) = error { return false }
    }
    return true
  }
}
