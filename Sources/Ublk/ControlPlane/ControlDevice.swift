import BlockCore
package import CUblk
import Glibc

/// The control side of the ublk driver: one typed call for each command.
///
/// Every command has a deadline. One that the kernel never answers costs a thread and throws
/// ``UblkError/timedOut(_:milliseconds:)``; the next command gets a fresh thread and ring.
/// Not for use by two threads at once.
package final class ControlDevice {
  private var runner: CommandRunner
  private let deadline: Int

  /// Opens /dev/ublk-control.
  ///
  /// - Parameter deadline: The milliseconds that a command may take.
  /// - Throws: ``UblkError/noControlDevice(_:)``, ``UblkError/noControlRing(_:)``.
  package init(deadline: Int = 30_000) throws(UblkError) {
    self.deadline = deadline
    runner = try CommandRunner()
  }

  deinit { runner.retire() }

  /// `keepsWaiting` is asked whenever the deadline has passed: true for as long again.
  @discardableResult
  private func run(
    _ request: CommandRequest, deadline: Int? = nil, keepsWaiting: () -> Bool = { false }
  ) throws(UblkError) -> Int32 {
    let limit = deadline ?? self.deadline
    runner.post(request)
    var answer = request.wait(milliseconds: limit)
    while answer == nil, keepsWaiting() { answer = request.wait(milliseconds: limit) }
    guard let result = answer else {
      runner.retire()
      runner = try CommandRunner()
      throw .timedOut(request.command, milliseconds: limit)
    }
    if result < 0 { throw .refused(request.command, Errno(-result)) }
    return result
  }

  // MARK: Questions

  /// What the driver can do; empty before Linux 6.5, which cannot be asked.
  package func features() throws(UblkError) -> DeviceFeatures {
    let buffer = IOBuffer(count: 8)
    do throws(UblkError) {
      try run(CommandRequest(.getFeatures, device: .max, buffer: buffer))
    } catch {
      if case .refused(_, let errno) = error, errno == .notSupported { return [] }
      throw error
    }
    return unsafe DeviceFeatures(rawValue: buffer.base.load(as: UInt64.self))
  }

  /// What the driver knows of device `id`.
  package func info(_ id: UInt32) throws(UblkError) -> DeviceInfo {
    do throws(UblkError) { return try infoByPath(id) } catch {
      if case .timedOut = error { throw error }
    }
    let buffer = IOBuffer(count: MemoryLayout<ublk_device_info>.size)
    try run(CommandRequest(.getDeviceInfo, device: id, buffer: buffer))
    return unsafe DeviceInfo(buffer.base.load(as: ublk_device_info.self))
  }

  /// GET_DEV_INFO2, which wants the character device's path in front of the result.
  private func infoByPath(_ id: UInt32) throws(UblkError) -> DeviceInfo {
    let path = Array("/dev/ublkc\(id)".utf8) + [0]
    let buffer = IOBuffer(count: path.count + MemoryLayout<ublk_device_info>.size)
    for (index, byte) in path.enumerated() {
      unsafe buffer.base.storeBytes(of: byte, toByteOffset: index, as: UInt8.self)
    }
    let request = CommandRequest(.getDeviceInfo2, device: id, buffer: buffer)
    request.header.dev_path_len = UInt16(path.count)
    try run(request)
    return unsafe DeviceInfo((buffer.base + path.count).loadUnaligned(as: ublk_device_info.self))
  }

  /// The parameters in force, with the device numbers once it is started.
  package func parameters(_ id: UInt32) throws(UblkError) -> ublk_parameters {
    let size = MemoryLayout<ublk_parameters>.size
    let buffer = IOBuffer(count: size)
    unsafe buffer.base.storeBytes(of: UInt32(size), as: UInt32.self)
    try run(CommandRequest(.getParameters, device: id, buffer: buffer))
    return unsafe buffer.base.load(as: ublk_parameters.self)
  }

  /// The CPUs that submit to a queue, as the bytes of a CPU mask.
  package func queueAffinity(_ id: UInt32, queue: Int) throws(UblkError) -> [UInt8] {
    let buffer = IOBuffer(count: 1024)
    let request = CommandRequest(.getQueueAffinity, device: id, buffer: buffer)
    request.header.data = UInt64(queue)
    try run(request)
    return unsafe [UInt8](UnsafeRawBufferPointer(start: buffer.base, count: buffer.count))
  }

  // MARK: Orders

  /// Makes a device that does not serve yet; nil for `id` lets the driver choose.
  ///
  /// What it returns has been made, and may be less than was asked for.
  package func add(
    id: UInt32?, queues: Int, depth: Int, maxIOBytes: Int, features: DeviceFeatures
  ) throws(UblkError) -> DeviceInfo {
    var info = ublk_device_info()
    info.nr_hw_queues = UInt16(queues)
    info.queue_depth = UInt16(depth)
    info.max_io_buf_bytes = UInt32(maxIOBytes)
    info.dev_id = id ?? .max
    info.flags = features.rawValue
    let buffer = IOBuffer(count: MemoryLayout<ublk_device_info>.size)
    unsafe buffer.base.storeBytes(of: info, as: ublk_device_info.self)
    try run(CommandRequest(.addDevice, device: info.dev_id, buffer: buffer))
    return unsafe DeviceInfo(buffer.base.load(as: ublk_device_info.self))
  }

  /// Sets the parameters of a device that has not been started.
  package func setParameters(_ id: UInt32, _ parameters: ublk_parameters) throws(UblkError) {
    let buffer = IOBuffer(count: MemoryLayout<ublk_parameters>.size)
    unsafe buffer.base.storeBytes(of: parameters, as: ublk_parameters.self)
    try run(CommandRequest(.setParameters, device: id, buffer: buffer))
  }

  /// Has the disk of a device that serves show `bytes`, a multiple of 512; needs
  /// ``DeviceFeatures/updateSize``.
  package func updateSize(_ id: UInt32, bytes: UInt64) throws(UblkError) {
    let request = CommandRequest(.updateSize, device: id)
    request.header.data = bytes / 512
    try run(request)
  }

  /// Makes /dev/ublkbN appear; all queues must have fetched and must be served meanwhile.
  package func start(_ id: UInt32, server: Int32) throws(UblkError) {
    let request = CommandRequest(.startDevice, device: id)
    request.header.data = UInt64(UInt32(bitPattern: server))
    try run(request)
  }

  /// Tells the driver that a new server comes for a device whose server has died.
  ///
  /// - Throws: ``UblkError/refused(_:_:)`` with EBUSY while the old server's rings still hold
  ///   /dev/ublkcN, and for a device that does not wait for a server; see ``DeviceInfo/state``.
  package func startRecovery(_ id: UInt32) throws(UblkError) {
    try run(CommandRequest(.startUserRecovery, device: id))
  }

  /// Lets requests go to the new server, the ones that the dead server had too; all its queues must have
  /// fetched.
  package func endRecovery(_ id: UInt32, server: Int32) throws(UblkError) {
    let request = CommandRequest(.endUserRecovery, device: id)
    request.header.data = UInt64(UInt32(bitPattern: server))
    try run(request)
  }

  /// Has the driver keep all requests and give the server's idle commands back, so that the server can
  /// leave without an error for anyone; needs ``DeviceFeatures/quiesce``.
  ///
  /// - Parameters:
  ///   - id: The device.
  ///   - milliseconds: How long the driver waits until each queue has an idle command.
  /// - Throws: ``UblkError/refused(_:_:)`` with EBUSY if a queue had none.
  package func quiesce(_ id: UInt32, milliseconds: Int) throws(UblkError) {
    let request = CommandRequest(.quiesceDevice, device: id)
    request.header.data = UInt64(milliseconds)
    try run(request, deadline: milliseconds + deadline)
  }

  /// Takes /dev/ublkbN away; ends requests first, so the queues must be served meanwhile.
  ///
  /// What the system has not written yet is written before the command ends, which may take long:
  /// `keepsWaiting` is asked each time that `deadline`, in milliseconds, has passed.
  ///
  /// `ifUnused` has the driver refuse with EBUSY while anyone has the disk open, and keep new openers
  /// out from its look on. That needs ``DeviceFeatures/safeStop``.
  package func stop(
    _ id: UInt32, ifUnused: Bool = false, deadline: Int? = nil,
    keepsWaiting: () -> Bool = { false }
  ) throws(UblkError) {
    let command: ControlCommand = ifUnused ? .tryStopDevice : .stopDevice
    try run(CommandRequest(command, device: id), deadline: deadline, keepsWaiting: keepsWaiting)
  }

  /// Carries out a command on a device that others may stop and delete at the same time: that it is
  /// gone then is no failure.
  package func unlessGone(_ command: () throws(UblkError) -> Void) throws(UblkError) {
    do throws(UblkError) { try command() } catch {
      guard case .refused(_, .noDevice) = error else { throw error }
    }
  }

  /// Takes the device away; waits until its character device is closed, unless `asynchronously`.
  package func delete(_ id: UInt32, asynchronously: Bool = false) throws(UblkError) {
    try run(CommandRequest(asynchronously ? .deleteDeviceAsync : .deleteDevice, device: id))
  }
}
