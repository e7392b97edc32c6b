import CUblk
import Testing

@testable import Ublk

/// Whether a device and a new server fit together.
@Suite struct RecoveryCheckTests {
  private func info(_ features: DeviceFeatures, queues: UInt16 = 2) -> DeviceInfo {
    var raw = ublk_device_info()
    raw.nr_hw_queues = queues
    raw.queue_depth = 128
    raw.flags = features.rawValue
    return DeviceInfo(raw)
  }

  private func obstacle(
    _ info: DeviceInfo, zeroCopy: ZeroCopyChoice = .automatic, usesZeroCopy: Bool = false
  ) -> UblkError? {
    var options = DeviceOptions(
      parameters: DeviceParameters(size: 1 << 20, clusterSize: 4096), fileDescriptors: [])
    options.queues = 2
    options.zeroCopy = zeroCopy
    do throws(UblkError) {
      try UblkDevice.check(info, options, usesZeroCopy: usesZeroCopy)
      return nil
    } catch { return error }
  }

  @Test func aDeviceAndItsNewServerMustFit() {
    let zeroCopy: DeviceFeatures = [.autoBufferRegistration, .userCopy]
    #expect(obstacle(info(.recovery)) == nil)
    #expect(obstacle(info([.userRecovery])) == .notRecoverable(.notEnabled))
    #expect(
      obstacle(info(.recovery, queues: 1))
        == .notRecoverable(.queues(found: 1, depth: 128, expected: 2, expectedDepth: 128)))
    // A device that copies though the kernel could do without: the choice was left open.
    #expect(obstacle(info(.recovery), usesZeroCopy: true) == nil)
    #expect(
      obstacle(info(.recovery), zeroCopy: .required, usesZeroCopy: true)
        == .notRecoverable(.features(.autoBufferRegistration)))
    #expect(
      obstacle(info(zeroCopy.union(.recovery)), zeroCopy: .off)
        == .notRecoverable(.features(.autoBufferRegistration)))
  }

  @Test func theDriverIsAskedForRecoveryOnlyIfItIsWanted() {
    var options = DeviceOptions(
      parameters: DeviceParameters(size: 1 << 20, clusterSize: 4096), fileDescriptors: [])
    let all: DeviceFeatures = [.userRecovery, .userRecoveryReissue, .quiesce]
    #expect(UblkDevice.requestedFeatures(options, all, false) == [])
    options.survivesServer = true
    #expect(UblkDevice.requestedFeatures(options, all, false) == all)
    #expect(UblkDevice.requestedFeatures(options, .recovery, false) == .recovery)
  }
}
