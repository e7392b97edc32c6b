package import BlockCore

/// Why something about a ublk device failed.
package enum UblkError: Error, Equatable {
  /// /dev/ublk-control cannot be opened.
  case noControlDevice(Errno)
  /// The ring for control commands, or its thread, cannot be made.
  case noControlRing(Errno)
  /// The eventfd that tells of the end of the workers cannot be made.
  case noEndSignal(Errno)
  /// The driver refused a command.
  case refused(ControlCommand, Errno)
  /// The driver did not answer in time; the command may still take effect.
  case timedOut(ControlCommand, milliseconds: Int)
  /// The parameters break a rule of the driver.
  case parameters(ParameterError)
  /// The number of queues or their depth is out of the driver's bounds.
  case queues(Int, depth: Int)
  /// The driver would make fewer or shallower queues than asked for.
  case driverLimits(queues: Int, depth: Int)
  /// The driver cannot do what an option demands.
  case lacks(DeviceFeatures)
  /// /dev/ublkcN cannot be opened.
  case noCharacterDevice(id: UInt32, Errno)
  /// A worker did not get as far as serving.
  case worker(queue: Int, WorkerStage, Errno)
  /// The device cannot get a new server.
  case notRecoverable(RecoveryObstacle)
  /// The driver takes no more commands of a queue that serves.
  case lost(queue: Int, Errno)
}

/// Why a device cannot get a new server.
package enum RecoveryObstacle: Error, Equatable {
  /// It was made without ``DeviceFeatures/recovery``.
  case notEnabled
  /// It was stopped meanwhile.
  case stopped
  /// A process still serves it.
  case served(process: Int32)
  /// It has other queues than the new server would serve.
  case queues(found: Int, depth: Int, expected: Int, expectedDepth: Int)
  /// It moves data by other means than the new server would: the features that differ.
  case features(DeviceFeatures)
  /// It is larger or smaller than what would be served, and the driver cannot change that; bytes.
  case size(found: UInt64, expected: UInt64)
}

extension UblkError {
  /// Whether the driver refused to stop a device because it is open.
  package var isInUse: Bool { self == .refused(.tryStopDevice, .busy) }
}

/// How far a worker came; for reports.
package enum WorkerStage: UInt8, Sendable {
  case thread, ring, tables, memory, fetch, readiness
}

/// What went wrong without stopping a device from being made.
package enum DeviceWarning: Equatable, Sendable {
  /// The thread could not be bound to its queue's CPUs.
  case affinity(queue: Int, Errno)
  /// PR_SET_IO_FLUSHER failed or had no effect: memory reclaim could wait for the device itself.
  case ioFlusher(queue: Int, Errno)
}
