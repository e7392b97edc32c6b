import BlockCore
import Testing

@testable import QCOW2Tools

/// Tables and refcount blocks are never read or written outside of their memory.
@Suite struct CheckedAccessTests {
  @Test func accessesInsideAreExact() {
    let buffer = IOBuffer(count: 512)
    buffer.storeBE64(0x0102_0304_0506_0708, 504)
    #expect(buffer.be64(504) == 0x0102_0304_0506_0708)
    #expect(buffer.refcount(511, order: 3) == 8)
    for order in 0...6 {
      let last = ((512 * 8) >> order) - 1
      buffer.setRefcount(last, order: order, to: 1)
      #expect(buffer.refcount(last, order: order) == 1)
    }
  }

  @Test func accessesOutsideTrap() async {
    await #expect(processExitsWith: .failure) { _ = IOBuffer(count: 512).be64(505) }
    await #expect(processExitsWith: .failure) { _ = IOBuffer(count: 512).be64(-1) }
    await #expect(processExitsWith: .failure) { IOBuffer(count: 512).storeBE64(1, 505) }
    await #expect(processExitsWith: .failure) { _ = IOBuffer(count: 512).refcount(4096, order: 0) }
    await #expect(processExitsWith: .failure) { _ = IOBuffer(count: 512).refcount(64, order: 6) }
    await #expect(processExitsWith: .failure) {
      IOBuffer(count: 512).setRefcount(256, order: 4, to: 1)
    }
  }
}
