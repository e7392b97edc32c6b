import BlockCore
import CUblk
import Testing

@testable import Ublk

@Suite struct ParametersTests {
  private func valid() -> DeviceParameters { DeviceParameters(size: 1 << 30, clusterSize: 65536) }

  @Test func `layouts have the kernel's sizes`() {
    #expect(MemoryLayout<ublk_control_command>.size == 32)
    #expect(MemoryLayout<ublk_device_info>.size == 64)
    #expect(MemoryLayout<ublk_io_descriptor>.size == 24)
    #expect(MemoryLayout<ublk_io_command>.size == 16)
    #expect(MemoryLayout<ublk_parameters>.size == 136)
  }

  @Test func `opcodes are ioctl-encoded`() {
    #expect(ControlCommand.addDevice.opcode == 0xc020_7504)
    #expect(ControlCommand.getFeatures.opcode == 0x8020_7513)
    #expect(UBLK_IO_FETCH == 0xc010_7520)
    #expect(UBLK_IO_COMMIT_AND_FETCH == 0xc010_7521)
    #expect(Set(ControlCommand.allCases.map(\.opcode)).count == ControlCommand.allCases.count)
  }

  @Test func `what the block layer is told follows from the cluster size`() throws {
    let raw = valid().encoded(maxIOBytes: 1 << 20)
    #expect(raw.len == 136)
    let types = UBLK_PARAM_TYPE_BASIC | UBLK_PARAM_TYPE_DISCARD | UBLK_PARAM_TYPE_DMA_ALIGN
    #expect(raw.types == UInt32(types))
    #expect(raw.basic.attrs == UInt32(UBLK_ATTR_VOLATILE_CACHE | UBLK_ATTR_FUA))
    #expect(raw.basic.logical_bs_shift == 9 && raw.basic.physical_bs_shift == 12)
    #expect(raw.basic.io_min_shift == 12 && raw.basic.io_opt_shift == 16)
    #expect(raw.basic.max_sectors == 2048 && raw.basic.chunk_sectors == 0)
    #expect(raw.basic.dev_sectors == 1 << 21)
    #expect(raw.discard.discard_granularity == 65536 && raw.discard.max_discard_segments == 1)
    #expect(raw.discard.max_discard_sectors == 1 << 21)
    #expect(raw.dma.alignment == 511)
  }

  @Test func `a cluster of 512 bytes is its own physical block`() throws {
    let parameters = DeviceParameters(size: 1 << 20, clusterSize: 512)
    try parameters.validate(maxIOBytes: 1 << 20)
    #expect(parameters.encoded(maxIOBytes: 1 << 20).basic.physical_bs_shift == 9)
  }

  @Test func `a read-only device offers no discard`() {
    let raw = DeviceParameters(size: 512, clusterSize: 65536, isReadOnly: true)
      .encoded(maxIOBytes: 4096)
    #expect(raw.basic.attrs & UInt32(UBLK_ATTR_READ_ONLY) != 0)
    #expect(raw.types & UInt32(UBLK_PARAM_TYPE_DISCARD) == 0)
  }

  @Test func `what the driver would refuse is refused first`() throws {
    try valid().validate(maxIOBytes: 1 << 20)
    func check(_ change: (inout DeviceParameters) -> Void, _ expected: ParameterError) {
      var parameters = valid()
      change(&parameters)
      #expect(throws: expected) { try parameters.validate(maxIOBytes: 1 << 20) }
    }
    check({ $0.size = 0 }, .sizeNotWholeBlocks(bytes: 0, block: 512))
    check({ $0.size = 513 }, .sizeNotWholeBlocks(bytes: 513, block: 512))
    check({ $0.logicalBlock = 256 }, .logicalBlock(bytes: 256))
    check({ $0.logicalBlock = 8192 }, .logicalBlock(bytes: 8192))
    check({ $0.logicalBlock = 1000 }, .logicalBlock(bytes: 1000))
    check({ $0.physicalBlock = 256 }, .physicalBlock(bytes: 256, logical: 512))
    check({ $0.discard?.granularity = 0 }, .discardGranularity(bytes: 0))
    check({ $0.discard?.granularity = 768 }, .discardGranularity(bytes: 768))
    check({ $0.dmaAlignment = 8192 }, .dmaAlignment(bytes: 8192))
    check({ $0.dmaAlignment = 3 }, .dmaAlignment(bytes: 3))
    for bytes in [0, 512, 5000, 64 << 20] {
      #expect(throws: ParameterError.maxIO(bytes: UInt64(bytes), buffer: 32 << 20)) {
        try valid().validate(maxIOBytes: bytes)
      }
    }
  }

  @Test func `the largest discard fits the driver's field`() {
    var parameters = valid()
    parameters.discard?.maxDiscardBytes = .max
    #expect(parameters.encoded(maxIOBytes: 4096).discard.max_discard_sectors == 1 << 31)
  }

  @Test func `zero copy is chosen by what the driver has`() throws {
    let all: DeviceFeatures = [.autoBufferRegistration, .userCopy, .ioctlEncoding]
    #expect(try UblkDevice.zeroCopy(.automatic, all))
    #expect(try UblkDevice.zeroCopy(.required, all))
    #expect(try !UblkDevice.zeroCopy(.off, all))
    #expect(try !UblkDevice.zeroCopy(.automatic, [.userCopy]))
    #expect(throws: UblkError.lacks(.autoBufferRegistration)) {
      try UblkDevice.zeroCopy(.required, [.userCopy])
    }
  }
}
