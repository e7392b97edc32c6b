import BlockCore
import CPlatform
import DiskImages
import Glibc
import HostFiles
import QCOW2Engine

/// A limit of the system that is too low for a device.
package struct Shortage: Equatable {
  /// The limit, with the way to set it.
  let limit: String
  let found: String
  let needed: String
  let wayOut: String

  var text: String { "\(limit) is \(found), serving needs \(needed): \(wayOut)" }
}

/// What a daemon needs while it serves, compared with the limits that it was started under.
///
/// A daemon that runs out of something later cannot finish requests, and its device hangs for everyone. So a
/// daemon is not started where its needs do not fit.
enum ServingNeeds {
  /// Descriptors for what comes and goes while a device is served: clients, /proc, the log.
  static let spareDescriptors = 8
  /// The address space that the start takes before the exact need is known.
  private static let startAddressSpace: UInt64 = 512 << 20

  /// To be called first: the failure of an allocation has no way back.
  static func checkForStart(
    _ request: AttachRequest, _ memory: MemoryLimit?
  ) throws(CommandError) {
    // The image three times (for requests, to be read by jobs, for emptying the page cache), what tells of
    // its events, and the way to the lookout.
    try checkDescriptors(descriptors(request) + 5)
    try checkAddresses(startAddressSpace)
    if let memory { try MemoryNeed(request).check(memory, isLowerBound: true) }
  }

  /// To be called with the image open.
  static func check(_ request: AttachRequest) throws(CommandError) {
    try checkDescriptors(descriptors(request))
    try checkAddresses(addressSpace(request))
  }

  // MARK: Descriptors

  /// The descriptors of a device beyond those of its files.
  private static func descriptors(_ request: AttachRequest) -> Int {
    // A ring and an eventfd for each queue. Then /dev/ublk-control and its ring, /dev/ublkcN, /dev/zero, the
    // end of the workers, the news of jobs, the supervisor, the state's lock, its socket, the log, and the
    // room for all that.
    2 * request.queues + 11 + spareDescriptors
  }

  /// Whether so many descriptors are left.
  static func checkDescriptors(_ count: Int) throws(CommandError) {
    guard qublk_process_spare_descriptors(Int32(count)) < 0 else { return }
    let limit = qublk_process_descriptor_limit()
    let open = directoryEntries("/proc/self/fd").count
    throw .shortage(
      Shortage(
        limit: "the limit of open files (ulimit -n)", found: "\(limit), \(open) of them open",
        needed: "\(count) more", wayOut: "raise it, or add with a smaller -q"))
  }

  // MARK: Addresses

  /// The addresses of all that is mapped for serving: buffers, stacks, rings, and the room that the C
  /// library reserves for each thread.
  private static func addressSpace(_ request: AttachRequest) -> UInt64 {
    let buffers = UInt64(request.queues * request.depth * AttachRequest.maxIOBytes)
    let threads = UInt64(request.queues + 3)
    return buffers + threads * 132 << 20
  }

  private static func checkAddresses(_ more: UInt64) throws(CommandError) {
    let limits = [
      ("address space (ulimit -v)", qublk_process_address_limit(), "VmSize"),
      ("writable memory (ulimit -d)", qublk_process_data_limit(), "VmData"),
    ]
    for (name, limit, used) in limits {
      let needed = status(used) + more
      guard limit < needed else { continue }
      throw .shortage(
        Shortage(
          limit: "the limit of \(name)", found: "\(limit >> 10) KiB", needed: "\(needed >> 10) KiB",
          wayOut: "raise it, or add with a smaller -q or -d"))
    }
  }

  /// A size of /proc/self/status, in bytes; 0 where it is missing.
  fileprivate static func status(_ name: String) -> UInt64 {
    for line in smallFile("/proc/self/status").split(separator: "\n")
    where line.hasPrefix("\(name):") {
      let digits = line.drop { !$0.isNumber }.prefix { $0.isNumber }
      return (UInt64(digits) ?? 0) << 10
    }
    return 0
  }
}

// MARK: Memory

/// The memory that a device takes at most, of what a cgroup permits.
///
/// Nothing may kill a daemon, so without memory it would wait for ever, and its device with it.
struct MemoryNeed: Equatable {
  /// Whatever it serves: code, what there is now, caches, and what each queue has.
  var fixed: UInt64
  /// What a request takes on the slow path.
  var perRequest: UInt64
  private let queues: Int
  private let depth: Int

  /// Fewer requests at once than this would make a device too slow to be of use.
  private static let fewestRequests = 4
  /// For the heap's waste, the kernel's own memory, and all that is small.
  private static let reserve: UInt64 = 8 << 20

  init(fixed: UInt64, perRequest: UInt64, queues: Int, depth: Int) {
    self.fixed = fixed
    self.perRequest = perRequest
    self.queues = queues
    self.depth = depth
  }

  /// What is known before the image is open: the least that any image takes.
  init(_ request: AttachRequest) {
    // A stack and a part of the heap for each queue; for each tag its plan, and what the ring has for it.
    let ofQueue = UInt64(3 << 20 + request.depth * (8 << 10))
    self.init(
      fixed: Self.present() + Self.reserve + UInt64(request.queues) * ofQueue,
      perRequest: 128 << 10,
      queues: request.queues, depth: request.depth)
  }

  /// What an open disk takes.
  init(_ request: AttachRequest, _ disk: any OpenDisk, usesZeroCopy: Bool) {
    self.init(request)
    let buffer = UInt64(AttachRequest.maxIOBytes)
    if usesZeroCopy {
      perRequest += buffer
    } else {
      fixed += UInt64(request.queues * request.depth) * buffer
    }
    if disk.isEncrypted { perRequest += 256 << 10 }
    // What direct I/O cannot take as it is goes through aligned memory.
    if disk.memoryAlignment > request.blockSize { perRequest += buffer }
    if let image = disk as? DiskImage { add(image, request) }
  }

  private mutating func add(_ image: DiskImage, _ request: AttachRequest) {
    let statistics = image.engine.statistics
    for cache in [statistics.l2, statistics.refcounts] {
      fixed += UInt64(max(cache.slots - cache.resident, 0) * cache.sliceBytes)
    }
    // All backing images together have as much as the image.
    if image.backingDepth > 0 { fixed += UInt64(statistics.l2.slots * statistics.l2.sliceBytes) }
    let cluster = image.allocationUnit
    let decompressed = max(1 << 20, 4 * cluster) + cluster
    fixed += UInt64(request.queues * (image.backingDepth + 1)) * decompressed
    // A write that copies has both ends of its clusters; a read that inflates has the compressed bytes.
    perRequest += max(
      2 * min(cluster, 256 << 10), UInt64(AttachRequest.maxIOBytes) + cluster + 8192)
    if request.disk.engine.copyOnRead { perRequest += UInt64(AttachRequest.maxIOBytes) + cluster }
  }

  /// The private memory that there is, and all code, resident or not.
  private static func present() -> UInt64 {
    ServingNeeds.status("RssAnon") + ServingNeeds.status("VmExe") + ServingNeeds.status("VmLib")
  }

  /// The least memory with which a device may be made, in whole MiB: two starts differ by some pages.
  var least: UInt64 {
    let bytes = fixed + UInt64(queues * min(Self.fewestRequests, depth)) * perRequest
    return (bytes + (1 << 20) - 1) & ~((1 << 20) - 1)
  }

  /// `isLowerBound`: the image is not open yet, and will add its own needs.
  func check(_ limit: MemoryLimit, isLowerBound: Bool = false) throws(CommandError) {
    guard limit.bytes < least else { return }
    throw .shortage(
      Shortage(
        limit: limit.file, found: "\(limit.bytes) bytes",
        needed: isLowerBound ? "\(least), and more for the image" : "\(least)",
        wayOut: "raise it, or add with a smaller -q, -d or --cache-size"))
  }

  /// The requests of each queue that the slow path may serve at once; nil if memory is enough for all.
  func servingLimit(_ limit: MemoryLimit) -> Int? {
    let room = (limit.bytes - min(fixed, limit.bytes)) / perRequest / UInt64(queues)
    return room >= UInt64(depth) ? nil : max(Int(room), 1)
  }
}
