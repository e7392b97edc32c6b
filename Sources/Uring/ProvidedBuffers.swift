public import BlockCore
import CUring
import Glibc

/// Equal buffers that the kernel picks from when an operation has something to say.
///
/// The kernel knows their addresses until the ring is gone, so the memory must outlive the ring.
@safe
public struct ProvidedBuffers: ~Copyable {
  /// The number of the group, for entries that pick from it.
  public let group: UInt16
  private let bufferBytes: Int
  private let count: Int
  /// The ring of slots, then the buffers.
  private let memory: UnsafeMutableRawPointer
  private let buffers: UnsafeMutableRawPointer
  private let memoryBytes: Int

  /// Makes the buffers and gives them all to the kernel.
  ///
  /// - Parameters:
  ///   - ring: The ring that will use them.
  ///   - group: A number that no other group of the ring has.
  ///   - count: The number of buffers, a power of two up to 32768.
  ///   - bufferBytes: The size of each.
  /// - Throws: The errno of mmap(2) or io_uring_register(2).
  public init(
    _ ring: borrowing Ring, group: UInt16, count: Int, bufferBytes: Int
  ) throws(Errno) {
    let page = Int(sysconf(Int32(_SC_PAGESIZE)))
    let slotBytes = (count * 16 + page - 1) / page * page
    let bytes = slotBytes + count * bufferBytes
    let mapped = unsafe mmap(
      nil, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    guard let mapped = unsafe mapped, unsafe mapped != MAP_FAILED else { throw Errno(errno) }
    let result = unsafe qublk_ring_add_group(ring.raw, group, mapped, UInt32(count))
    if result < 0 {
      unsafe munmap(mapped, bytes)
      throw Errno(-result)
    }
    self.group = group
    self.count = count
    self.bufferBytes = bufferBytes
    memoryBytes = bytes
    unsafe memory = unsafe mapped
    unsafe buffers = unsafe mapped + slotBytes
    for id in 0..<count { giveBack(id) }
  }

  deinit { unsafe munmap(memory, memoryBytes) }

  /// The bytes of the buffer `id`, which a completion has named; nil for a number out of range.
  public func buffer(_ id: Int) -> UnsafeRawBufferPointer? {
    guard id >= 0, id < count else { return nil }
    return unsafe UnsafeRawBufferPointer(start: buffers + id * bufferBytes, count: bufferBytes)
  }

  /// Gives a buffer that a completion named to the kernel again.
  public func giveBack(_ id: Int) {
    unsafe qublk_ring_provide(
      memory, UInt32(count), buffers + id * bufferBytes, UInt32(bufferBytes), UInt16(id))
  }
}
