import BlockCore

/// What a worker needs to know to serve one queue.
struct QueueSetup: Sendable {
  let queue: Int
  let depth: Int
  let maxIOBytes: Int
  let usesZeroCopy: Bool
  /// The device was made for batch commands, and takes no others.
  let usesBatches: Bool
  let pollLimit: UInt64
  let slowPathData: SlowPathData
  /// The requests that the slow path serves at once; see ``DeviceOptions/servingLimit``.
  let servingLimit: Int
  /// The slots of the ring's buffer table; at least 1.
  let registeredBuffers: Int
  let characterDevice: Int32
  /// The host files of transfers, by number.
  let fileDescriptors: [Int32]
  /// Asked after each failure for want of space; see ``DeviceOptions/retryNoSpace``.
  let retryNoSpace: (@Sendable (_ attempt: Int) async -> Bool)?
  /// See ``DeviceOptions/onTransferFailure``.
  let onTransferFailure: (@Sendable (HostTransfer, BlockOperation, Errno) -> Void)?
  /// /dev/zero, for the zeros of reads under zero copy; -1 in copy mode.
  let zeroDescriptor: Int32
  /// The bytes of a CPU mask; nil leaves the thread where it is.
  let affinity: [UInt8]?
  let target: any BlockTarget
  let counters: QueueCounters
  /// Called once, on the worker, if the driver takes no more commands of the queue while it serves.
  let onLoss: @Sendable (Errno) -> Void
  let maintenance: (@Sendable () async -> Void)?
}
