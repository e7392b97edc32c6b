package import BlockCore

/// How the data of requests travels.
package enum ZeroCopyChoice: Sendable {
  /// Zero copy where the driver has it, copies elsewhere.
  case automatic
  /// Zero copy or no device.
  case required
  /// Copies, through a buffer for each tag.
  case off
}

/// What the slow path finds in a request's `data` under zero copy.
package enum SlowPathData: Sendable {
  /// Plain memory: the data plane copies to and from the request's pages.
  case memory
  /// The registered buffer itself, which only ring transfers can reach; see ``UserCopy``.
  case registered
}

/// How a device is made and served.
package struct DeviceOptions: Sendable {
  /// The number wanted; nil lets the driver choose.
  package var id: UInt32?
  /// The number of queues, each with a thread; the driver allows at most one per CPU.
  package var queues = 1
  /// The number of requests in flight per queue, at most 4096.
  package var depth = 128
  /// The most bytes of one request, a multiple of 4096.
  package var maxIOBytes = 1 << 20
  package var zeroCopy = ZeroCopyChoice.automatic
  /// Fetch and commit many requests with one command, where the driver can.
  package var batches = false
  /// The most nanoseconds for which a worker looks for completions before it sleeps; 0 for never.
  package var pollLimit: UInt64 = 0
  package var slowPathData = SlowPathData.registered
  /// The slots of each ring's buffer table, under zero copy; nil for one per tag.
  ///
  /// Requests of tags beyond them take the slow path and are copied.
  package var registeredBuffers: Int?
  /// The requests of each queue that the slow path serves at once, at least 1; nil for all.
  ///
  /// Bounds the memory that requests take. Others wait for their turn.
  package var servingLimit: Int?
  package var parameters: DeviceParameters
  /// The files that the transfers of a plan go to, by number; stay the caller's, open until after
  /// `stop`.
  package var fileDescriptors: [Int32]
  /// Keep the kernel from looking for partitions, where it can be told so.
  package var skipsPartitionScan = false
  /// Have the driver keep the device, and all requests, when this process dies: see
  /// ``UblkDevice/recover(_:_:_:onWait:beforeFetch:)``.
  package var survivesServer = false
  /// Stops the device from another process; nil if this process does so itself.
  package var outsideStop: (any OutsideStop)?
  /// Bind each worker to the CPUs whose requests its queue gets.
  package var pinsThreads = true
  /// The milliseconds that a control command, and the start of the workers, may take.
  package var deadline = 30_000
  /// Called on the worker when the slow path failed with ENOSPC, with the number of times it was asked
  /// before for this request: waits as long as it sees fit and says whether to serve the request again.
  package var retryNoSpace: (@Sendable (_ attempt: Int) async -> Bool)?
  /// Called on the worker when a transfer of a plan has failed, with the errno: must not wait.
  package var onTransferFailure: (@Sendable (HostTransfer, BlockOperation, Errno) -> Void)?
  /// Runs as a task on worker 0 from before the start; ends once `WorkerLoop.sleep` returns false.
  package var maintenance: (@Sendable () async -> Void)?

  package init(parameters: DeviceParameters, fileDescriptors: [Int32]) {
    self.parameters = parameters
    self.fileDescriptors = fileDescriptors
  }
}
