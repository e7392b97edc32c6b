package import BlockCore
import CPlatform
import Glibc
package import Serving
import Synchronization
import Uring

/// A device that this process serves, from ADD_DEV to DEL_DEV.
///
/// For the control thread only, which never serves I/O: workers serve from before START_DEV until
/// after STOP_DEV has returned. What ``create(_:_:)`` and ``stop()`` leave behind on an error is
/// nothing, except after a command that the driver never answered.
package final class UblkDevice {
  /// The number in /dev/ublkbN.
  package let id: UInt32
  /// Whether requests' own pages are used; decided at creation.
  package let usesZeroCopy: Bool
  /// Whether requests travel in batches.
  package let usesBatches: Bool
  /// The driver's view at creation.
  package let info: DeviceInfo
  let control: ControlDevice
  let options: DeviceOptions
  private(set) var files = DeviceFiles()
  private(set) var threads: [QueueThread] = []
  private var counters: [QueueCounters] = []
  private let ends: EndSignal

  /// An eventfd that becomes readable when all workers have ended, or one has lost its queue.
  ///
  /// They end when anyone stops the device; ``stop(waitsForUsers:onWait:)`` is still needed then, to
  /// delete it.
  package var endedDescriptor: Int32 { ends.descriptor }

  /// Why the device cannot go on, ``UblkError/lost(queue:_:)``; nil while it can.
  ///
  /// Requests wait in the driver from then on, until ``stop(waitsForUsers:onWait:)``.
  package var loss: UblkError? { ends.loss }

  /// What is not as it should be, though the device serves.
  package var warnings: [DeviceWarning] { threads.flatMap(\.warnings) }

  /// What the workers know of host files beyond those that they began with.
  package var workerFiles: WorkerFiles { WorkerFiles(threads: threads) }

  /// One element for each queue.
  package var statistics: [QueueCounters] { counters }

  /// Whether the driver keeps the device, and all requests, when this process dies.
  package var survivesServer: Bool { info.features.isSuperset(of: .recovery) }

  init(
    _ info: DeviceInfo, _ control: ControlDevice, _ options: DeviceOptions, _ ends: EndSignal
  ) {
    self.info = info
    self.ends = ends
    self.control = control
    self.options = options
    id = info.id
    usesZeroCopy = info.features.contains(.autoBufferRegistration)
    usesBatches = info.features.contains(.batch)
  }

  // MARK: Creation

  /// Makes a device and serves it; returns when /dev/ublkbN exists and its partitions are known.
  ///
  /// - Parameters:
  ///   - target: What is served; made for `options.queues` workers with `options.depth` slots.
  ///   - options: How; checked before the driver sees them.
  /// - Returns: The device, which serves until ``stop(waitsForUsers:onWait:)``.
  /// - Throws: ``UblkError``; nothing of the device stays.
  package static func create(
    _ target: any BlockTarget, _ options: DeviceOptions
  ) throws(UblkError) -> UblkDevice {
    try check(options)
    let control = try ControlDevice(deadline: options.deadline)
    let features = try control.features()
    let wantsZeroCopy = try zeroCopy(options.zeroCopy, features)
    guard wantsZeroCopy, options.zeroCopy == .automatic else {
      return try create(target, options, control, features, wantsZeroCopy)
    }
    do throws(UblkError) {
      return try create(target, options, control, features, true)
    } catch {
      // A driver that offers zero copy and then refuses it at the fetch still does copies.
      guard case .worker(_, let stage, _) = error, stage == .fetch || stage == .tables else {
        throw error
      }
      return try create(target, options, control, features, false)
    }
  }

  private static func create(
    _ target: any BlockTarget, _ options: DeviceOptions, _ control: ControlDevice,
    _ features: DeviceFeatures, _ usesZeroCopy: Bool
  ) throws(UblkError) -> UblkDevice {
    let wanted = requestedFeatures(options, features, usesZeroCopy)
    // Before there is a device: what fails from ADD_DEV on has to take it away again.
    let ends = try EndSignal(workers: options.queues)
    let info = try control.add(
      id: options.id, queues: options.queues, depth: options.depth,
      maxIOBytes: options.maxIOBytes, features: wanted)
    let device = UblkDevice(info, control, options, ends)
    do throws(UblkError) {
      try device.bringUp(target, wanted)
      return device
    } catch {
      device.tearDown()
      throw error
    }
  }

  /// From ADD_DEV to START_DEV.
  private func bringUp(
    _ target: any BlockTarget, _ wanted: DeviceFeatures
  ) throws(UblkError) {
    guard info.queues == options.queues, info.depth == options.depth else {
      throw .driverLimits(queues: info.queues, depth: info.depth)
    }
    // The driver drops flags that it does not know without a word.
    guard info.features.isSuperset(of: wanted) else {
      throw .lacks(wanted.subtracting(info.features))
    }
    try control.setParameters(id, options.parameters.encoded(maxIOBytes: info.maxIOBytes))
    try startWorkers(target)
    for thread in threads { try thread.waitUntilServing(milliseconds: options.deadline) }
    try control.start(id, server: getpid())
  }

  /// Opens /dev/ublkcN and starts a worker for each queue; with `gate` they wait there.
  func startWorkers(_ target: any BlockTarget, gate: FetchGate? = nil) throws(UblkError) {
    try files.open(id, zeroCopy: usesZeroCopy, deadline: options.deadline)
    for queue in 0..<info.queues { try startWorker(queue, target, gate) }
  }

  private var requestOptions: RequestDriverOptions {
    var requests = RequestDriverOptions()
    requests.servingLimit = max(1, min(info.depth, options.servingLimit ?? info.depth))
    requests.retryNoSpace = options.retryNoSpace
    requests.onTransferFailure = options.onTransferFailure
    return requests
  }

  private func startWorker(
    _ queue: Int, _ target: any BlockTarget, _ gate: FetchGate?
  ) throws(UblkError) {
    let affinity = options.pinsThreads ? try? control.queueAffinity(id, queue: queue) : nil
    let counters = QueueCounters()
    let setup = QueueSetup(
      queue: queue, depth: info.depth, maxIOBytes: info.maxIOBytes, usesZeroCopy: usesZeroCopy,
      usesBatches: usesBatches, pollLimit: options.pollLimit, slowPathData: options.slowPathData,
      requestOptions: requestOptions,
      registeredBuffers: max(1, min(info.depth, options.registeredBuffers ?? info.depth)),
      characterDevice: files.character, fileDescriptors: options.fileDescriptors,
      zeroDescriptor: files.zero, affinity: affinity,
      target: target, counters: counters,
      onLoss: { [ends] error in ends.workerLost(queue, error) },
      maintenance: queue == 0 ? options.maintenance : nil, gate: gate)
    threads.append(try QueueThread(setup) { [ends] in ends.workerEnded() })
    self.counters.append(counters)
  }

  // MARK: End

  /// Whether there are workers that have not been joined.
  package var isServing: Bool { !threads.isEmpty }

  /// Stops and deletes the device; requests in flight are finished first.
  ///
  /// This takes as long as the host needs for the requests and for data that the system has yet to write,
  /// which may be gigabytes; to give up would lose them. A device that another process has stopped or
  /// deleted meanwhile is no error. If a queue is lost, closing the character device makes the driver stop
  /// the device and fail the requests that it still has.
  ///
  /// - Parameters:
  ///   - waitsForUsers: Whether to wait until nobody has the disk open any more. Without, the
  ///     nodes vanish at once, and the driver forgets the device when its last user has left.
  ///   - ifUnused: Has the driver refuse to stop a device that anyone has open: with
  ///     ``UblkError/isInUse``. Drivers before Linux 7.0 stop it all the same.
  ///   - onWait: Called for every 30 s that stopping takes.
  /// - Throws: If ``isServing`` then, the driver has refused to stop the device, which still serves.
  package func stop(
    waitsForUsers: Bool = true, ifUnused: Bool = false, onWait: () -> Void = {}
  ) throws(UblkError) {
    let ifUnused = ifUnused && info.features.contains(.safeStop)
    do throws(UblkError) {
      var seconds = 0
      if loss == nil {
        try stopDisk(ifUnused) {
          seconds += 1
          if seconds % 30 == 0 { onWait() }
          return loss == nil
        }
      }
    } catch {
      // The loss of a queue may be what kept the driver from answering.
      if loss == nil && !ends.haveAllEnded { throw error }
    }
    let isLost = loss != nil
    if isLost { for thread in threads { thread.abandon() } }
    leave()
    if isLost { try control.unlessGone { () throws(UblkError) in try control.stop(id) } }
    try control.unlessGone { () throws(UblkError) in
      try control.delete(id, asynchronously: !waitsForUsers || isLost)
    }
  }

  /// Takes the disk away, from another process where there is one for it.
  private func stopDisk(_ ifUnused: Bool, keepsWaiting: () -> Bool) throws(UblkError) {
    switch options.outsideStop?.stop(ifUnused: ifUnused, keepsWaiting: keepsWaiting) {
    case .stopped: return
    case .refused(let code):
      throw .refused(ifUnused ? .tryStopDevice : .stopDevice, Errno(code))
    case .abandoned: throw .timedOut(.stopDevice, milliseconds: 1000)
    case nil:
      try DeviceStopWork.run(
        control, id, ifUnused: ifUnused, isRecoverable: survivesServer, keepsWaiting: keepsWaiting)
    }
  }

  /// Waits for the workers' end and closes /dev/ublkcN.
  private func leave() {
    for thread in threads { thread.join() }
    threads = []
    files.close()
  }

  /// The way back from a failed creation: nothing of the device stays.
  private func tearDown() {
    if loss == nil { try? control.stop(id) }
    abandon()
    try? control.delete(id)
  }

  /// Leaves a device as it is: requests that the workers have are finished, the driver keeps all others.
  func abandon() {
    for thread in threads { thread.abandon() }
    leave()
  }
}

/// The descriptors that the workers of a device share.
struct DeviceFiles {
  private(set) var character: Int32 = -1
  private(set) var zero: Int32 = -1

  /// Opens /dev/ublkcN, which may appear a moment after ADD_DEV, and what zero copy needs.
  mutating func open(_ id: UInt32, zeroCopy: Bool, deadline: Int) throws(UblkError) {
    let end = MonotonicClock.milliseconds() + UInt64(deadline)
    repeat {
      character = unsafe Glibc.open("/dev/ublkc\(id)", O_RDWR | O_CLOEXEC)
      if character >= 0 { break }
      let error = Errno(errno)
      let mayAppear = error == .noEntry || error == .busy || error == .accessDenied
      if !mayAppear || MonotonicClock.milliseconds() >= end {
        throw .noCharacterDevice(id: id, error)
      }
      usleep(5000)
    } while true
    guard zeroCopy else { return }
    zero = unsafe Glibc.open("/dev/zero", O_RDONLY | O_CLOEXEC)
    if zero < 0 { throw .worker(queue: 0, .tables, Errno(errno)) }
  }

  mutating func close() {
    if character >= 0 { Glibc.close(character) }
    if zero >= 0 { Glibc.close(zero) }
    (character, zero) = (-1, -1)
  }
}

/// Says when the last worker has ended, or one cannot go on.
final class EndSignal: Sendable {
  let descriptor: Int32
  private let running: Atomic<Int>
  private let firstLoss = Mutex<UblkError?>(nil)

  init(workers: Int) throws(UblkError) {
    running = Atomic(workers)
    descriptor = qublk_eventfd()
    if descriptor < 0 { throw .noEndSignal(Errno(-descriptor)) }
  }

  deinit { if descriptor >= 0 { close(descriptor) } }

  var haveAllEnded: Bool { running.load(ordering: .acquiring) == 0 }
  var loss: UblkError? { firstLoss.withLock { $0 } }

  func workerEnded() {
    guard running.subtract(1, ordering: .acquiringAndReleasing).newValue == 0 else { return }
    signal()
  }

  func workerLost(_ queue: Int, _ error: Errno) {
    firstLoss.withLock { if $0 == nil { $0 = .lost(queue: queue, error) } }
    signal()
  }

  private func signal() {
    var one: UInt64 = 1
    _ = unsafe write(descriptor, &one, 8)
  }
}
