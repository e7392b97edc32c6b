import BlockCore
import CUblk
import Testing

@testable import Ublk

@Suite struct DescriptorTests {
  private func descriptor(
    _ operation: Int, flags: Int = 0, start: UInt64 = 0, sectors: UInt32 = 8
  ) -> IODescriptor {
    var raw = ublk_io_descriptor()
    raw.op_flags = UInt32(operation | flags)
    raw.start_sector = start
    raw.nr_sectors = sectors
    return IODescriptor(raw)
  }

  @Test func `each operation becomes its request`() throws {
    let pairs: [(Int, BlockOperation)] = [
      (UBLK_IO_OP_READ, .read), (UBLK_IO_OP_WRITE, .write), (UBLK_IO_OP_DISCARD, .discard),
      (UBLK_IO_OP_WRITE_ZEROES, .writeZeroes), (UBLK_IO_OP_FLUSH, .flush),
    ]
    for (code, operation) in pairs {
      let request = try descriptor(code, start: 16).request(size: 1 << 20, maxIOBytes: 1 << 20)
      #expect(request.operation == operation)
      if operation != .flush {
        #expect(request.offset == GuestOffset(8192) && request.length == 4096)
      }
      #expect(!request.isFUA && !request.keepsAllocation)
    }
  }

  @Test func `flags are carried over`() throws {
    let fua = try descriptor(UBLK_IO_OP_WRITE, flags: UBLK_IO_F_FUA)
      .request(size: 1 << 20, maxIOBytes: 1 << 20)
    #expect(fua.isFUA)
    let keeps = try descriptor(UBLK_IO_OP_WRITE_ZEROES, flags: UBLK_IO_F_NOUNMAP)
      .request(size: 1 << 20, maxIOBytes: 1 << 20)
    #expect(keeps.keepsAllocation)
    #expect(descriptor(UBLK_IO_OP_READ, flags: UBLK_IO_F_NEED_REG_BUF).lacksRegisteredBuffer)
  }

  @Test func `unknown operations are invalid`() {
    for code in [4, 10, 15, 18, 255] {
      #expect(throws: Errno.invalid) {
        try descriptor(code).request(size: 1 << 20, maxIOBytes: 1 << 20)
      }
    }
  }

  @Test func `ranges that are not wholly on the device fail`() throws {
    let size: UInt64 = 1 << 20
    func fails(_ start: UInt64, _ sectors: UInt32, _ error: Errno) {
      #expect(throws: error) {
        try descriptor(UBLK_IO_OP_READ, start: start, sectors: sectors)
          .request(size: size, maxIOBytes: 65536)
      }
    }
    fails(2048, 1, .io)
    fails(2047, 2, .io)
    fails(.max, 1, .io)
    fails(1 << 55, 8, .io)
    fails(0, 0, .io)
    fails(0, 129, .invalid)
    _ = try descriptor(UBLK_IO_OP_READ, start: 2047, sectors: 1)
      .request(size: size, maxIOBytes: 65536)
    _ = try descriptor(UBLK_IO_OP_DISCARD, start: 0, sectors: 2048)
      .request(size: size, maxIOBytes: 65536)
  }

  @Test func `user copy addresses queue, tag and offset`() {
    let copy = UserCopy(characterDevice: -1, queue: 3)
    #expect(
      copy.position(tag: 5, offset: 512) == 0x8000_0000 + (3 << 41 | 5 << 25 | 512 as UInt64))
  }
}
