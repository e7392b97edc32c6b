import CUblk

/// What is decided before the driver is asked to make a device.
extension UblkDevice {
  /// Checks the options by themselves.
  static func check(_ options: DeviceOptions) throws(UblkError) {
    guard (1...Int(UBLK_MAX_QUEUES)).contains(options.queues),
      (1...Int(UBLK_MAX_QUEUE_DEPTH)).contains(options.depth)
    else { throw .queues(options.queues, depth: options.depth) }
    do throws(ParameterError) {
      try options.parameters.validate(maxIOBytes: options.maxIOBytes)
    } catch { throw .parameters(error) }
  }

  /// Whether to try zero copy.
  package static func zeroCopy(
    _ choice: ZeroCopyChoice, _ features: DeviceFeatures
  ) throws(UblkError) -> Bool {
    let needed: DeviceFeatures = [.autoBufferRegistration, .userCopy]
    switch choice {
    case .off: return false
    case .automatic: return features.isSuperset(of: needed)
    case .required:
      guard features.isSuperset(of: needed) else { throw .lacks(needed.subtracting(features)) }
      return true
    }
  }

  /// The flags for ADD_DEV.
  static func requestedFeatures(
    _ options: DeviceOptions, _ features: DeviceFeatures, _ usesZeroCopy: Bool
  ) -> DeviceFeatures {
    var wanted: DeviceFeatures = []
    if usesZeroCopy { wanted.formUnion([.autoBufferRegistration, .userCopy]) }
    if options.batches, features.contains(.batch) { wanted.insert(.batch) }
    if options.survivesServer {
      wanted.formUnion(.recovery)
      if features.contains(.quiesce) { wanted.insert(.quiesce) }
    }
    if options.skipsPartitionScan, features.contains(.noPartitionScan) {
      wanted.insert(.noPartitionScan)
    }
    return wanted
  }
}
