import BlockCore
import Glibc
import QCOW2Format
import Synchronization
import TestSupport
import Testing

@testable import QCOW2Engine

/// How much the cache of L2 slices holds, and what memory it takes.
@Suite struct CacheSizeTests {
  /// The pages of the cache's arena that are in memory.
  private func residentPages(_ cache: SliceCache) -> Int {
    let bytes = cache.slotCount * cache.sliceSize
    var pages = [UInt8](repeating: 0, count: (bytes + 4095) / 4096)
    #expect(mincore(cache.slices.base, bytes, &pages) == 0)
    return pages.count { $0 & 1 != 0 }
  }

  @Test("A cache takes memory for what it holds, not for what it may hold")
  func memoryIsTakenAsItIsUsed() async throws {
    let file = SyntheticImage(size: 1 << 40)
    let storage = ImageStorage(file: file, health: ImageHealth())
    let cache = try SliceCache(sliceSize: 4096, slots: 1 << 18)
    #expect(residentPages(cache) == 0)
    for slice in 0..<100 {
      try await cache.withSlice(
        HostOffset(file.l2Offset + UInt64(slice) << 12), storage: storage, makeRoom: {}
      ) { _ in }
    }
    #expect(residentPages(cache) == 100)
  }

  @Test(
    "A size that no host has gives a smaller cache, not a trap",
    arguments: [1 << 31, 1 << 37, 1 << 45, 1 << 51, Int.max / 2, Int.max])
  func anImpossibleSizeIsCutDown(slots: Int) async throws {
    let cache = try SliceCache(sliceSize: 4096, slots: slots)
    #expect(cache.slotCount >= 1 << 14 && cache.slotCount <= 1 << 36)
    // It works at both ends of its memory.
    let storage = ImageStorage(file: SyntheticImage(size: 1 << 40), health: ImageHealth())
    for slice in 0..<256 {
      try await cache.withSlice(
        HostOffset(UInt64(slice) << 12), storage: storage, makeRoom: {}
      ) { _ in }
    }
    #expect(cache.counters.resident.load(ordering: .relaxed) == 256)
  }

  @Test("Without memory for the smallest cache there is an error that says so")
  func noMemoryAtAll() {
    #expect {
      try SliceCache(sliceSize: 1 << 61, slots: 1)
    } throws: { error in
      guard let error = error as? ImageError, case .noMemory = error else { return false }
      return error.errno == .noMemory && !error.isCorruption
        && error.message.hasPrefix("there is no memory for")
    }
    #expect(IOBuffer(ifPossible: 1 << 60) == nil)
    #expect(throws: ImageError.self) { try IOBuffer.ofTable(1 << 60) }
    #expect(throws: ImageError.self) { try ClusterSet(minimumCapacity: 1 << 58) }
    #expect(throws: ImageError.self) {
      try DiskTable(
        offset: HostOffset(0), bytes: UnsafeRawBufferPointer(start: nil, count: 0), count: 1 << 58)
    }
  }

  @Test(
    "When the budget suffices for the whole disk, no slice is ever read twice",
    arguments: [(UInt64(256) << 30, 16), (1 << 40, 18), (8 << 40, 21)])
  func theWholeDiskFits(size: UInt64, clusterBits: Int) async throws {
    let file = SyntheticImage(size: size, clusterBits: clusterBits)
    file.fillsData = false
    var options = ImageOptions()
    options.readOnly = true
    let image = try await Image.open(file, options: options)
    let slices = size / image.slices.bytesPerSlice
    #expect(slices * 4096 <= UInt64(ImageOptions.standardCacheBytes))
    let buffer = IOBuffer(count: 512)
    for _ in 0..<2 {
      for slice in 0..<slices {
        let request = BlockRequest(
          .read, offset: GuestOffset(slice * image.slices.bytesPerSlice), length: 512,
          data: buffer.data)
        #expect(await image.serve(request, worker: 0, slot: 0) == .done)
      }
    }
    #expect(file.reads(.l2) == Int(slices))
    #expect(image.l2.counts.evictions == 0)
    withExtendedLifetime(buffer) {}
  }

  @Test("Slots by the disk and the budget")
  func slotsByDiskAndBudget() async throws {
    func slots(_ size: UInt64, _ budget: Int?) async throws -> Int {
      let file = SyntheticImage(size: size)
      let references = try await HeaderCluster.read(file)
      var options = ImageOptions()
      options.cacheBytes = budget
      return Image.l2Slots(references.header, options, 4096)
    }
    // 64 KiB clusters: 128 KiB of slices for each GiB. A small disk may grow.
    #expect(try await slots(1 << 30, nil) == 8192 + 2048)
    #expect(try await slots(1 << 40, nil) == 8192)
    #expect(try await slots(1 << 40, 64 << 20) == 16384)
    #expect(try await slots(1 << 40, 1 << 40) == 32768 + 8192)
    #expect(try await slots(1 << 40, 65536) == 16)
  }
}
