import CUblk

/// The commands that /dev/ublk-control takes.
package enum ControlCommand: Sendable, CaseIterable {
  case getFeatures, addDevice, setParameters, getParameters, startDevice, stopDevice, tryStopDevice
  case deleteDevice, deleteDeviceAsync, getDeviceInfo, getDeviceInfo2, getQueueAffinity
  case startUserRecovery, endUserRecovery, updateSize, quiesceDevice

  /// The ioctl-encoded opcode.
  package var opcode: UInt32 {
    switch self {
    case .getFeatures: UBLK_CMD_GET_FEATURES
    case .addDevice: UBLK_CMD_ADD_DEV
    case .setParameters: UBLK_CMD_SET_PARAMS
    case .getParameters: UBLK_CMD_GET_PARAMS
    case .startDevice: UBLK_CMD_START_DEV
    case .stopDevice: UBLK_CMD_STOP_DEV
    case .tryStopDevice: UBLK_CMD_TRY_STOP_DEV
    case .deleteDevice: UBLK_CMD_DEL_DEV
    case .deleteDeviceAsync: UBLK_CMD_DEL_DEV_ASYNC
    case .getDeviceInfo: UBLK_CMD_GET_DEV_INFO
    case .getDeviceInfo2: UBLK_CMD_GET_DEV_INFO2
    case .getQueueAffinity: UBLK_CMD_GET_QUEUE_AFFINITY
    case .startUserRecovery: UBLK_CMD_START_USER_RECOVERY
    case .endUserRecovery: UBLK_CMD_END_USER_RECOVERY
    case .updateSize: UBLK_CMD_UPDATE_SIZE
    case .quiesceDevice: UBLK_CMD_QUIESCE_DEV
    }
  }
}

/// The driver's feature flags.
package struct DeviceFeatures: OptionSet, Hashable, Sendable {
  package let rawValue: UInt64
  package init(rawValue: UInt64) { self.rawValue = rawValue }

  package static let supportZeroCopy = Self(rawValue: UBLK_F_SUPPORT_ZERO_COPY)
  package static let userRecovery = Self(rawValue: UBLK_F_USER_RECOVERY)
  package static let userRecoveryReissue = Self(rawValue: UBLK_F_USER_RECOVERY_REISSUE)
  package static let unprivileged = Self(rawValue: UBLK_F_UNPRIVILEGED_DEV)
  package static let ioctlEncoding = Self(rawValue: UBLK_F_CMD_IOCTL_ENCODE)
  package static let userCopy = Self(rawValue: UBLK_F_USER_COPY)
  package static let userRecoveryFailIO = Self(rawValue: UBLK_F_USER_RECOVERY_FAIL_IO)
  package static let updateSize = Self(rawValue: UBLK_F_UPDATE_SIZE)
  package static let autoBufferRegistration = Self(rawValue: UBLK_F_AUTO_BUF_REG)
  package static let quiesce = Self(rawValue: UBLK_F_QUIESCE)
  package static let batch = Self(rawValue: UBLK_F_BATCH_IO)
  package static let safeStop = Self(rawValue: UBLK_F_SAFE_STOP_DEV)
  /// What a device needs that is to outlive its server.
  package static let recovery: Self = [.userRecovery, .userRecoveryReissue]
  package static let noPartitionScan = Self(rawValue: UBLK_F_NO_AUTO_PART_SCAN)
}

/// What the driver knows of a device.
package struct DeviceInfo: Equatable, Sendable {
  /// The life of a device as the driver sees it.
  package enum State: Equatable, Sendable {
    case dead, live, quiesced, failIO
    case unknown(UInt16)
  }

  package var id: UInt32
  package var queues: Int
  package var depth: Int
  package var state: State
  package var maxIOBytes: Int
  /// The process that serves, 0 before the start.
  package var serverPID: Int32
  package var features: DeviceFeatures

  init(_ raw: ublk_device_info) {
    id = raw.dev_id
    queues = Int(raw.nr_hw_queues)
    depth = Int(raw.queue_depth)
    maxIOBytes = Int(raw.max_io_buf_bytes)
    serverPID = raw.ublksrv_pid
    features = DeviceFeatures(rawValue: raw.flags)
    switch Int(raw.state) {
    case UBLK_STATE_DEAD: state = .dead
    case UBLK_STATE_LIVE: state = .live
    case UBLK_STATE_QUIESCED: state = .quiesced
    case UBLK_STATE_FAIL_IO: state = .failIO
    default: state = .unknown(raw.state)
    }
  }
}
