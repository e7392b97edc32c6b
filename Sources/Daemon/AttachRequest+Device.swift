import BlockCore
import DiskImages
import HostFiles
import QCOW2Engine
import Ublk
import Uring

extension AttachRequest {
  /// The most bytes of one request.
  static let maxIOBytes = 1 << 20

  /// What the driver is asked for.
  func deviceOptions(_ disk: any OpenDisk, _ hold: NoSpaceHold?) -> DeviceOptions {
    var options = DeviceOptions(
      parameters: parameters(disk), fileDescriptors: disk.files.prefix(256).map(\.descriptor))
    options.id = id
    options.queues = queues
    options.maxIOBytes = Self.maxIOBytes
    options.depth = depth
    options.zeroCopy =
      switch zeroCopy {
      case .auto: .automatic
      case .on: .required
      case .off: .off
      }
    options.registeredBuffers = zeroCopySlots
    options.servingLimit = servingLimit
    options.batches = batches
    options.pollLimit = pollLimit
    // What is encrypted goes through memory in any case.
    if disk.isEncrypted { options.slowPathData = .memory }
    if self.disk.engine.compressesWrites { options.slowPathData = .memory }
    options.survivesServer = recovery == .on
    options.retryNoSpace = hold?.retry
    options.maintenance = maintenance(of: disk)
    options.onTransferFailure = reportTransfer(of: disk)
    return options
  }

  private func parameters(_ disk: any OpenDisk) -> DeviceParameters {
    let block = UInt64(blockSize)
    var parameters = DeviceParameters(
      size: disk.target.size, clusterSize: max(disk.allocationUnit, block),
      isReadOnly: isReadOnly)
    parameters.logicalBlock = block
    parameters.dmaAlignment = UInt32(max(disk.memoryAlignment, 512))
    return parameters
  }

  /// Reports transfers of the hit path, of which the engine knows nothing.
  private func reportTransfer(
    of disk: any OpenDisk
  ) -> (@Sendable (HostTransfer, BlockOperation, Errno) -> Void)? {
    guard let events = self.disk.events else { return nil }
    let reporters = disk.objects.map { EventReporter(events, $0) }
    return { transfer, operation, errno in
      guard reporters.indices.contains(Int(transfer.file)) else { return }
      reporters[Int(transfer.file)].note(
        operation == .read ? .read : .write, at: transfer.hostOffset,
        length: UInt64(transfer.length), errno)
    }
  }

  /// Writes back what is old, for as long as the workers live.
  private func maintenance(of disk: any OpenDisk) -> @Sendable () async -> Void {
    let interval = max(dirtyAge / 2, 1)
    return {
      while let loop = WorkerLoop.current, await loop.sleep(milliseconds: interval) {
        await disk.maintain()
      }
    }
  }
}
