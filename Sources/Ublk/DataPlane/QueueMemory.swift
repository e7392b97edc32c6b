import BlockCore
import CPlatform
import CUblk
import Glibc

/// The mappings of a queue: the driver's descriptors, and a buffer for each tag.
///
/// Buffers are touched by the requests that use them and not before: in copy mode by all, under
/// zero copy by those whose data must be in plain memory.
@safe
struct QueueMemory: ~Copyable {
  let descriptors: UnsafePointer<ublk_io_descriptor>
  /// The first tag's buffer, which the others follow every `bufferBytes`.
  let buffers: UnsafeMutableRawPointer
  let bufferBytes: Int
  private let descriptorBytes: Int
  private let depth: Int

  /// Maps the descriptors of `queue` and the buffers.
  init(characterDevice: Int32, queue: Int, depth: Int, bufferBytes: Int) throws(Errno) {
    let page = Int(sysconf(Int32(_SC_PAGESIZE)))
    let stride = MemoryLayout<ublk_io_descriptor>.stride
    let bytes = Self.roundUp(depth * stride, page)
    let offset = queue * Self.roundUp(Int(UBLK_MAX_QUEUE_DEPTH) * stride, page)
    let mapped = unsafe mmap(
      nil, bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, characterDevice, off_t(offset))
    guard let mapped = unsafe mapped, unsafe mapped != MAP_FAILED else { throw Errno(errno) }
    let memory: UnsafeMutableRawPointer
    do throws(Errno) { unsafe memory = try unsafe Self.mapBuffers(depth * bufferBytes) } catch {
      unsafe munmap(mapped, bytes)
      throw error
    }
    unsafe descriptors = unsafe UnsafePointer(
      mapped.assumingMemoryBound(to: ublk_io_descriptor.self))
    unsafe buffers = unsafe memory
    descriptorBytes = bytes
    self.bufferBytes = bufferBytes
    self.depth = depth
  }

  private static func mapBuffers(_ bytes: Int) throws(Errno) -> UnsafeMutableRawPointer {
    let memory = unsafe mmap(
      nil, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    guard let memory = unsafe memory, unsafe memory != MAP_FAILED else { throw Errno(errno) }
    _ = unsafe qublk_advise_small_pages(memory, bytes)  // a kernel without huge pages says EINVAL
    return unsafe memory
  }

  /// The buffer of `tag`, as the data of a request of `count` bytes.
  func buffer(_ tag: Int, _ count: Int) -> DataBuffer {
    unsafe DataBuffer(memory: buffers + tag * bufferBytes, count: count)
  }

  /// Gives back the memory below a buffer that nothing uses any more.
  func dropBuffer(_ tag: Int, _ count: Int) {
    unsafe qublk_drop_pages(buffers + tag * bufferBytes, count)
  }

  deinit {
    unsafe munmap(UnsafeMutableRawPointer(mutating: descriptors), descriptorBytes)
    unsafe munmap(buffers, depth * bufferBytes)
  }

  private static func roundUp(_ value: Int, _ unit: Int) -> Int {
    (value + unit - 1) / unit * unit
  }
}
