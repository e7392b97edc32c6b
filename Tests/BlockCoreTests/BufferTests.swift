import BlockCore
import Testing

@Suite struct BufferTests {
  @Test(
    "A new buffer is aligned for O_DIRECT and all zeros", arguments: [0, 1, 512, 4096, 100_000])
  func newBuffersAreZero(count: Int) {
    let buffer = IOBuffer(count: count)
    #expect(UInt(bitPattern: buffer.base) % 4096 == 0)
    #expect(buffer.count == count)
    let bytes = UnsafeRawBufferPointer(start: buffer.base, count: count)
    #expect(bytes.allSatisfy { $0 == 0 })
  }

  @Test("A slice of memory points into it, a slice of a registered buffer moves its offset")
  func slicesPointIntoTheirBuffer() {
    let buffer = IOBuffer(count: 4096)
    let part = buffer.data.slice(512, 1024).slice(512, 512)
    #expect(part.memory == buffer.base + 1024)
    #expect(part.count == 512)
    let registered = DataBuffer(registered: 3, offset: 100, count: 4096).slice(512, 1024)
    #expect(registered.address == 612 && registered.count == 1024)
    #expect(registered.registeredIndex == 3 && registered.memory == nil)
  }

  @Test("Guest and host offsets compare and advance by bytes")
  func offsetsAdvance() {
    #expect(GuestOffset(512) + 512 == GuestOffset(1024))
    #expect(HostOffset(1) < HostOffset(2))
    #expect(DataBuffer.none.memory == nil && DataBuffer.none.count == 0)
  }
}
