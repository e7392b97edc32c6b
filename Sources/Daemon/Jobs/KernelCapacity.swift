import ImageJobs
import Ublk

/// Tells the kernel of another size of a device's disk (UPDATE_SIZE, Linux 6.16 and later).
///
/// For the threads of jobs: each call opens the control device anew, since the control thread's own is not
/// for two threads at once.
struct KernelCapacity: DeviceCapacity {
  /// Of the device.
  let id: UInt32

  func requireChangeable() throws(JobError) {
    let features: DeviceFeatures
    do throws(UblkError) { features = try ControlDevice().features() } catch {
      throw .device(CommandError.device(error).text)
    }
    guard features.contains(.updateSize) else {
      throw .device(
        "the kernel cannot change the size of a ublk device: take it away with \"qublk del\", resize the "
          + "image and add it again, or use Linux 6.16 or later")
    }
  }

  func set(bytes: UInt64) throws(JobError) {
    do throws(UblkError) { try ControlDevice().updateSize(id, bytes: bytes) } catch {
      throw .device(
        "the image has \(bytes) bytes, but the kernel was not told: \(CommandError.device(error).text): "
          + "resize it to \(bytes) again")
    }
  }
}
