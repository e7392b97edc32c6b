package import BlockCore
import CUblk
import Glibc

/// A new server for a device whose server has died.
extension UblkDevice {
  /// How long the driver is left in peace between two questions, in milliseconds.
  private static let pause: UInt32 = 5

  /// Waits until nothing of a dead server can reach the host files any more, as ``recover(_:_:_:onWait:beforeFetch:)``
  /// does, and leaves the device to be recovered.
  ///
  /// - Parameters:
  ///   - id: The device.
  ///   - onWait: Called for every 30 s that the old server's transfers take.
  /// - Throws: ``UblkError``.
  package static func awaitOldServer(
    _ id: UInt32, onWait: () -> Void = {}
  ) throws(UblkError) {
    _ = try waitForOldServer(id, ControlDevice(), onWait)
  }

  /// Serves a device that was made with ``DeviceOptions/survivesServer``, and whose server is gone.
  ///
  /// Waits until the old server's rings have let go of /dev/ublkcN, which they keep open for as long as a
  /// host transfer of theirs is in flight: nothing of the old server reaches the host files later.
  /// The driver then issues again all requests that the old server had, and those that came since.
  ///
  /// - Parameters:
  ///   - id: The device.
  ///   - target: What is served; made for `options.queues` workers with `options.depth` slots.
  ///   - options: How, as at the creation.
  ///   - onWait: Called for every 30 s that the old server's transfers take.
  ///   - beforeFetch: Called when all is ready, right before the first queue fetches, with whether the
  ///     driver could take no third server if this one died within the next moments. If it throws, the
  ///     device stays as it was.
  /// - Returns: The device, which serves until ``stop(waitsForUsers:ifUnused:onWait:)``.
  /// - Throws: ``UblkError``; the device still waits for a server then.
  package static func recover(
    _ id: UInt32, _ target: any BlockTarget, _ options: DeviceOptions, onWait: () -> Void = {},
    beforeFetch: (_ isLastChance: Bool) throws(UblkError) -> Void = { _ in }
  ) throws(UblkError) -> UblkDevice {
    try check(options)
    let control = try ControlDevice(deadline: options.deadline)
    let features = try control.features()
    let info = try waitForOldServer(id, control, onWait)
    try check(info, options, usesZeroCopy: try zeroCopy(options.zeroCopy, features))
    let device = try UblkDevice(info, control, options, EndSignal(workers: options.queues))
    do throws(UblkError) {
      try device.takeOver(target, features, beforeFetch)
      return device
    } catch {
      device.abandon()
      throw error
    }
  }

  /// Whether a device and what would serve it fit together.
  static func check(
    _ info: DeviceInfo, _ options: DeviceOptions, usesZeroCopy: Bool
  ) throws(UblkError) {
    guard info.features.isSuperset(of: .recovery) else { throw .notRecoverable(.notEnabled) }
    guard info.queues == options.queues, info.depth == options.depth else {
      throw .notRecoverable(
        .queues(
          found: info.queues, depth: info.depth, expected: options.queues,
          expectedDepth: options.depth))
    }
    var wanted: DeviceFeatures = usesZeroCopy ? [.autoBufferRegistration] : []
    if options.batches { wanted.insert(.batch) }
    let compared: DeviceFeatures = [.autoBufferRegistration, .batch]
    let differing = info.features.intersection(compared).symmetricDifference(wanted)
    // Zero copy that was left to the driver, or batches that it lacked, may have come out otherwise.
    let excused: DeviceFeatures = options.zeroCopy == .automatic ? compared : [.batch]
    guard differing.isSubset(of: excused) else { throw .notRecoverable(.features(differing)) }
  }

  /// Has the driver expect a new server.
  ///
  /// - Returns: The device, which waits for one.
  private static func waitForOldServer(
    _ id: UInt32, _ control: ControlDevice, _ onWait: () -> Void
  ) throws(UblkError) -> DeviceInfo {
    var waited: UInt32 = 0
    while true {
      let info = try control.info(id)
      if info.state == .dead { throw .notRecoverable(.stopped) }
      guard info.features.isSuperset(of: .recovery) else { throw .notRecoverable(.notEnabled) }
      do throws(UblkError) {
        try control.startRecovery(id)
        return try control.info(id)
      } catch {
        // Before Linux 6.16: an earlier new server died before its first queue had fetched. The driver
        // expects one already.
        if info.state == .quiesced, error == .refused(.startUserRecovery, .invalid) { return info }
        guard error == .refused(.startUserRecovery, .busy) else { throw error }
      }
      // A server that lives is one that has not been asked to go.
      if info.state == .live, waited > 10_000, info.serverPID > 0, kill(info.serverPID, 0) == 0 {
        throw .notRecoverable(.served(process: info.serverPID))
      }
      usleep(pause * 1000)
      waited += pause
      if waited % 30_000 == 0 { onWait() }
    }
  }

  private func takeOver(
    _ target: any BlockTarget, _ features: DeviceFeatures,
    _ beforeFetch: (Bool) throws(UblkError) -> Void
  ) throws(UblkError) {
    try checkSize(features)
    let gate = FetchGate()
    do throws(UblkError) {
      try startWorkers(target, gate: gate)
      let isReady = gate.wait(for: info.queues, milliseconds: options.deadline) {
        threads.contains { $0.startFailure != nil }
      }
      if let failure = threads.lazy.compactMap(\.startFailure).first { throw failure }
      if !isReady { throw .worker(queue: 0, .readiness, .timedOut) }
      try beforeFetch(!features.contains(.quiesce))
    } catch {
      gate.cancel()
      throw error
    }
    gate.open()
    for thread in threads { try thread.waitUntilServing(milliseconds: options.deadline) }
    try control.endRecovery(id, server: getpid())
    // A size that changed in the image, and of which the kernel had not been told yet.
    let size = options.parameters.size
    if let found = try? control.parameters(id).basic.dev_sectors, found != size / 512 {
      try? control.updateSize(id, bytes: size)
    }
  }

  /// What the kernel shows may differ only if it can be told otherwise.
  private func checkSize(_ features: DeviceFeatures) throws(UblkError) {
    let found = try control.parameters(id).basic.dev_sectors * 512
    let wanted = options.parameters.size
    guard found != wanted else { return }
    guard found < wanted, features.contains(.updateSize) else {
      throw .notRecoverable(.size(found: found, expected: wanted))
    }
  }
}
