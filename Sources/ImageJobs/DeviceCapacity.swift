/// The device that shows a disk while a job changes the disk's size.
///
/// The disk comes first: once its new size is durable, the device is told.
package protocol DeviceCapacity: Sendable {
  /// Fails with ``JobError/device(_:)`` if the kernel has no way to hear of another size; call before
  /// anything changes.
  func requireChangeable() throws(JobError)

  /// Has the kernel show so many bytes, a multiple of 512.
  ///
  /// - Throws: ``JobError/device(_:)``; the device then shows the old size, and the same job can be run
  ///   again.
  func set(bytes: UInt64) throws(JobError)
}
