import BlockCore
import Glibc
import Synchronization

/// All memory of one image that holds metadata ahead of the host file.
///
/// These are the slices of L2 tables and refcount blocks with their slots, the L1 table and the refcount
/// table with their marks, what workers have reserved, and the bits of persistent bitmaps. Everything
/// else that the engine has in memory (indexes, locks, waiters, lists of frees) can be made anew, and
/// lies elsewhere.
///
/// At any instruction the memory describes a state from which one flush round makes a right image. Its
/// users keep these rules, and say how:
/// - A mark says that the host file may lack something. It is set before the bytes change, and goes after
///   the host file has them (``CachedSlice``, ``DiskTable``).
/// - What changes by itself is one store of at most 8 bytes. What needs two goes through a state between
///   them that is right, too (``SliceEntries``, ``CacheSlot``, ``ArenaRecords``).
/// - Such stores are kept apart by ``orderStores()``.
///
/// The memory is anonymous: it ends with the process. Its layout could be a file's: a head of one page
/// (``MetadataHead``), then regions at offsets that the head knows.
@safe
final class MetadataMemory: @unchecked Sendable {  // why: `lock` guards the table of regions
  private let lock = FutexLock(.leaf)
  private let headMemory: UnsafeMutableRawPointer
  /// Where each line's region is mapped; nil if the line is free.
  private var mapped: [UnsafeMutableRawPointer?]
  /// The offset of the next region.
  private var end = UInt64(MetadataHead.size)
  #if DEBUG
    /// Called after each store into a region that the process could die behind, by whoever made it, with
    /// his locks held.
    ///
    /// Set while nobody else uses the memory.
    var afterStore: (@Sendable () -> Void)?
  #endif

  /// - Throws: ``ImageError/noMemory(bytes:)``.
  init() throws(ImageError) {
    unsafe headMemory = try Self.map(MetadataHead.size)
    unsafe mapped = Array(repeating: nil, count: MetadataHead.capacity)
    head.initialize()
  }

  deinit {
    for number in 0..<MetadataHead.capacity {
      guard let base = unsafe mapped[number] else { continue }
      unsafe munmap(base, Int(head[number].length))
    }
    unsafe munmap(headMemory, MetadataHead.size)
  }

  /// The first page.
  var head: MetadataHead { unsafe MetadataHead(headMemory) }

  /// Maps a region of `count` elements, and enters it into the head.
  ///
  /// - Parameters:
  ///   - kind: what it holds.
  ///   - elementSize: in bytes.
  ///   - count: elements, at least 1.
  ///   - length: in bytes, if it is not `count` times `elementSize`.
  ///   - place: where a table starts in the host file.
  /// - Returns: the region, all zeros, until it is given back.
  /// - Throws: ``ImageError/noMemory(bytes:)``, also if the head has no line left.
  func region(
    _ kind: MetadataKind, elementSize: Int, count: Int, length: Int? = nil,
    place: HostOffset = HostOffset(0)
  ) throws(ImageError) -> MetadataRegion {
    let (product, isTooLarge) = elementSize.multipliedReportingOverflow(by: count)
    guard !isTooLarge, product > 0 else { throw .noMemory(bytes: .max) }
    let length = length ?? product
    let base = try unsafe Self.map(length)
    let record = RegionRecord(
      kind: kind.rawValue, elementSize: UInt32(clamping: elementSize), length: UInt64(length),
      count: UInt64(count), place: place.bytes)
    guard let number = lock.withLock({ unsafe enter(record, base) }) else {
      unsafe munmap(base, length)
      throw .noMemory(bytes: length)
    }
    #if DEBUG
      return unsafe MetadataRegion(base: base, byteCount: length, number: number, memory: self)
    #else
      return unsafe MetadataRegion(base: base, byteCount: length, number: number)
    #endif
  }

  private func enter(_ record: RegionRecord, _ base: UnsafeMutableRawPointer) -> Int? {
    guard let number = unsafe mapped.firstIndex(where: { unsafe $0 == nil }) else { return nil }
    var record = record
    record.offset = end
    unsafe mapped[number] = unsafe base
    head.fill(number, record)
    end = (end + record.length + UInt64(MetadataHead.size) - 1) & ~UInt64(MetadataHead.size - 1)
    return number
  }

  /// Takes a region out of the head and unmaps it; call once nobody can look at it any more.
  func giveBack(_ region: MetadataRegion) {
    let isThere = lock.withLock {
      let isThere = unsafe mapped[region.number] == region.base
      if isThere {
        head.free(region.number)
        unsafe mapped[region.number] = nil
      }
      return isThere
    }
    precondition(isThere, "a region is given back twice")
    unsafe munmap(region.base, region.byteCount)
  }

  /// Where the region of a line is mapped; nil if the line is free.
  ///
  /// Call while no region comes or goes.
  func address(_ number: Int) -> UnsafeMutableRawPointer? { unsafe mapped[number] }

  /// Keeps the stores before it before those after it, also for whoever finds the memory when the process
  /// has died between two instructions.
  ///
  /// A processor that is interrupted has made all stores of the instructions before, and none of those
  /// behind: only the compiler could mix them. On x86 this is no instruction.
  @inline(__always) static func orderStores() { atomicMemoryFence(ordering: .releasing) }

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
