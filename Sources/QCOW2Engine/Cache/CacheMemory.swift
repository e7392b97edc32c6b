import BlockCore
import Glibc

/// The memory of a slice cache, as much of it as can be had: what a size asks for that no host has is
/// halved until there is enough.
@safe
struct CacheMemory {
  /// The bytes of all slots, to be unmapped.
  let arena: UnsafeMutableRawPointer
  /// The bookkeeping of all slots, to be deallocated.
  let stripes: LockedStripes<CacheStripe>
  let perStripe: Int

  /// - Throws: ``ImageError/noMemory(bytes:)`` if there is none for a slot in each stripe.
  static func allocate(
    stripes: Int, perStripe wanted: Int, sliceSize: Int
  ) throws(ImageError) -> CacheMemory {
    var slots = wanted
    while slots > 1 {
      if let memory = try? CacheMemory(exactly: slots, stripes: stripes, sliceSize: sliceSize) {
        return memory
      }
      slots /= 2
    }
    return try CacheMemory(exactly: 1, stripes: stripes, sliceSize: sliceSize)
  }

  private init(exactly perStripe: Int, stripes count: Int, sliceSize: Int) throws(ImageError) {
    let (bytes, isTooLarge) = (count * sliceSize).multipliedReportingOverflow(by: perStripe)
    if isTooLarge { throw .noMemory(bytes: .max) }
    let arena = try unsafe Self.map(bytes)
    do throws(ImageError) {
      stripes = try LockedStripes(count: count, rank: .slice) { (number) throws(ImageError) in
        try unsafe CacheStripe(
          memory: arena + number * perStripe * sliceSize, sliceSize: sliceSize,
          slotCount: perStripe)
      }
    } catch {
      unsafe munmap(arena, bytes)
      throw error
    }
    unsafe self.arena = unsafe arena
    self.perStripe = perStripe
  }

  /// Reserves addresses, in small pages: what is never used never takes memory.
  private static func map(_ bytes: Int) throws(ImageError) -> UnsafeMutableRawPointer {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
    let memory = unsafe mmap(nil, bytes, PROT_READ | PROT_WRITE, flags, -1, 0)
    guard let memory = unsafe memory, unsafe memory != MAP_FAILED else {
      throw .noMemory(bytes: bytes)
    }
    unsafe madvise(memory, bytes, 15)  // MADV_NOHUGEPAGE; a kernel without huge pages says EINVAL
    return unsafe memory
  }
}
