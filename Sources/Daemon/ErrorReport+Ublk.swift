import BlockCore
import Glibc
import Ublk

extension UblkError {
  /// The message after "qublk: ".
  var text: String {
    switch self {
    case .noControlDevice(let errno): "/dev/ublk-control: \(errno)\(Self.wayOut(errno))"
    case .noControlRing(let errno): "cannot make a ring for control commands: \(errno)"
    case .noEndSignal(let errno): "cannot make an eventfd: \(errno)"
    case .refused(let command, let errno):
      "ublk driver: \(command.kernelName): \(errno)\(Self.wayOut(command, errno))"
    case .timedOut(let command, let milliseconds):
      "ublk driver: \(command.kernelName): no answer in \(milliseconds) ms"
    case .parameters(let error): "ublk device: \(error.text)"
    case .queues(let queues, let depth):
      "\(queues) queues of depth \(depth): more than the ublk driver has"
    case .driverLimits(let queues, let depth):
      "the ublk driver makes only \(queues) queues of depth \(depth): add it with -q \(queues) "
        + "-d \(depth)"
    case .lacks(let features): "ublk driver lacks \(features.names)"
    case .noCharacterDevice(let id, let errno): "/dev/ublkc\(id): cannot open: \(errno)"
    case .worker(let queue, let stage, let errno):
      "queue \(queue): \(stage.text): \(errno)\(stage == .thread ? errno.threadHint : "")"
    case .notRecoverable(let obstacle): "cannot be recovered: \(obstacle.text)"
    case .lost(let queue, let errno): "queue \(queue): the driver refuses its commands: \(errno)"
    }
  }

  private static func wayOut(_ errno: Errno) -> String {
    switch errno {
    case .noEntry: ": load the driver with \"modprobe ublk_drv\""
    case .accessDenied: ": using ublk devices needs CAP_SYS_ADMIN"
    default: ""
    }
  }

  private static func wayOut(_ command: ControlCommand, _ errno: Errno) -> String {
    switch (command, errno) {
    case (.addDevice, Errno(EEXIST)): ": choose another --id"
    case (.addDevice, .accessDenied):
      ": perhaps the limit /sys/module/ublk_drv/parameters/ublks_max is reached"
    case (_, Errno(EPERM)): ": using ublk devices needs CAP_SYS_ADMIN"
    default: ""
    }
  }
}

extension RecoveryObstacle {
  fileprivate var text: String {
    switch self {
    case .notEnabled: "the device was made without UBLK_F_USER_RECOVERY_REISSUE"
    case .stopped: "the device was stopped meanwhile"
    case .served(let process): "process \(process) serves the device"
    case .queues(let found, let depth, let expected, let expectedDepth):
      "the device has \(found) queues of depth \(depth), expected \(expected) of depth "
        + "\(expectedDepth)"
    case .features(let features): "the device and the daemon differ in \(features.names)"
    case .size(let found, let expected):
      "the device has \(found) bytes, the image \(expected), and this kernel cannot change that"
    }
  }
}

extension ControlCommand {
  /// The kernel's name of the command.
  var kernelName: String {
    switch self {
    case .getFeatures: "GET_FEATURES"
    case .addDevice: "ADD_DEV"
    case .setParameters: "SET_PARAMS"
    case .getParameters: "GET_PARAMS"
    case .startDevice: "START_DEV"
    case .stopDevice: "STOP_DEV"
    case .tryStopDevice: "TRY_STOP_DEV"
    case .deleteDevice: "DEL_DEV"
    case .deleteDeviceAsync: "DEL_DEV_ASYNC"
    case .getDeviceInfo: "GET_DEV_INFO"
    case .getDeviceInfo2: "GET_DEV_INFO2"
    case .getQueueAffinity: "GET_QUEUE_AFFINITY"
    case .startUserRecovery: "START_USER_RECOVERY"
    case .endUserRecovery: "END_USER_RECOVERY"
    case .updateSize: "UPDATE_SIZE"
    case .quiesceDevice: "QUIESCE_DEV"
    }
  }
}

extension ParameterError {
  fileprivate var text: String {
    switch self {
    case .sizeNotWholeBlocks(0, _): "size is 0 bytes, expected one sector at least"
    case .sizeNotWholeBlocks(let bytes, let block):
      "size is \(bytes) bytes, expected a multiple of the \(block)-byte block: "
        + "add it with --block-size 512"
    case .logicalBlock(let bytes): "logical block is \(bytes) bytes, expected 512 to 4096"
    case .physicalBlock(let bytes, let logical):
      "physical block is \(bytes) bytes, expected at least the logical \(logical)"
    case .maxIO(let bytes, let buffer):
      "largest request is \(bytes) bytes, expected 4096 to \(buffer)"
    case .discardGranularity(let bytes): "discard granularity is \(bytes) bytes"
    case .dmaAlignment(let bytes): "alignment of memory is \(bytes) bytes"
    }
  }
}

extension DeviceFeatures {
  /// The flags that are set, by the kernel's names.
  fileprivate var names: String {
    let known: [(Self, String)] = [
      (.supportZeroCopy, "UBLK_F_SUPPORT_ZERO_COPY"), (.userRecovery, "UBLK_F_USER_RECOVERY"),
      (.userRecoveryReissue, "UBLK_F_USER_RECOVERY_REISSUE"),
      (.unprivileged, "UBLK_F_UNPRIVILEGED_DEV"), (.ioctlEncoding, "UBLK_F_CMD_IOCTL_ENCODE"),
      (.userCopy, "UBLK_F_USER_COPY"), (.userRecoveryFailIO, "UBLK_F_USER_RECOVERY_FAIL_IO"),
      (.updateSize, "UBLK_F_UPDATE_SIZE"), (.autoBufferRegistration, "UBLK_F_AUTO_BUF_REG"),
      (.quiesce, "UBLK_F_QUIESCE"), (.batch, "UBLK_F_BATCH_IO"),
      (.safeStop, "UBLK_F_SAFE_STOP_DEV"),
      (.noPartitionScan, "UBLK_F_NO_AUTO_PART_SCAN"),
    ]
    return known.filter { contains($0.0) }.map(\.1).joined(separator: ", ")
  }
}

extension WorkerStage {
  fileprivate var text: String {
    switch self {
    case .thread: "cannot start its thread"
    case .ring: "cannot make its ring"
    case .tables: "cannot register with its ring"
    case .memory: "cannot get its buffers"
    case .fetch: "cannot fetch requests"
    case .readiness: "did not get ready"
    }
  }
}

extension DeviceWarning {
  /// For the log.
  var text: String {
    switch self {
    case .affinity(let queue, let errno): "queue \(queue): cannot bind its thread: \(errno)"
    case .ioFlusher(let queue, let errno): "queue \(queue): cannot set PR_SET_IO_FLUSHER: \(errno)"
    }
  }
}
