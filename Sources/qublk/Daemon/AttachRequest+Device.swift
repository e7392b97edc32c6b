import BlockCore
import DiskImages
import HostFiles
import QCOW2Engine
import QCOW2Format
import Ublk
import Uring

extension AttachRequest {
  /// What the driver is asked for.
  func deviceOptions(_ image: DiskImage, _ hold: NoSpaceHold?) -> DeviceOptions {
    var options = DeviceOptions(
      parameters: parameters(image), fileDescriptors: image.files.prefix(256).map(\.descriptor))
    options.id = id
    options.queues = queues
    options.depth = depth
    options.zeroCopy =
      switch zeroCopy {
      case .auto: .automatic
      case .on: .required
      case .off: .off
      }
    // What is encrypted goes through memory in any case.
    if image.isEncrypted { options.slowPathData = .memory }
    if disk.engine.compressesWrites { options.slowPathData = .memory }
    options.retryNoSpace = hold?.retry
    options.maintenance = maintenance(of: image.engine)
    return options
  }

  private func parameters(_ image: DiskImage) -> DeviceParameters {
    let block = UInt64(blockSize)
    var parameters = DeviceParameters(
      size: image.engine.size, clusterSize: max(image.engine.geometry.clusterSize, block),
      isReadOnly: isReadOnly)
    parameters.logicalBlock = block
    parameters.dmaAlignment = UInt32(max(image.memoryAlignment, 512))
    return parameters
  }

  /// Writes back what is old, for as long as the workers live.
  private func maintenance(of engine: Image) -> @Sendable () async -> Void {
    let interval = max(dirtyAge / 2, 1)
    return {
      while let loop = WorkerLoop.current, await loop.sleep(milliseconds: interval) {
        await engine.maintain()
      }
    }
  }
}
