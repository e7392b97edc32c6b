import BlockCore
import Serving
import Uring

/// What a worker needs to know to serve one queue.
struct QueueSetup: Sendable {
  let queue: Int
  let depth: Int
  let maxIOBytes: Int
  let usesZeroCopy: Bool
  /// The device was made for batch commands, and takes no others.
  let usesBatches: Bool
  /// What carries commands to the driver; nothing does in a ``DriverlessQueue``.
  var commandOpcode = Opcode.uringCommand
  let pollLimit: UInt64
  let slowPathData: SlowPathData
  /// How requests are carried out, as ``DeviceOptions`` says.
  let requestOptions: RequestDriverOptions
  /// The slots of the ring's buffer table; at least 1.
  let registeredBuffers: Int
  let characterDevice: Int32
  /// The host files of transfers, by number.
  let fileDescriptors: [Int32]
  /// /dev/zero, for the zeros of reads under zero copy; -1 in copy mode.
  let zeroDescriptor: Int32
  /// The bytes of a CPU mask; nil leaves the thread where it is.
  let affinity: [UInt8]?
  let target: any BlockTarget
  let counters: QueueCounters
  /// Called once, on the worker, if the driver takes no more commands of the queue while it serves.
  let onLoss: @Sendable (Errno) -> Void
  let maintenance: (@Sendable () async -> Void)?
  /// What the worker waits for before it maps descriptors and fetches; nil for a new device.
  var gate: FetchGate?
}
