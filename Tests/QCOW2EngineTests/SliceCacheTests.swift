import BlockCore
import QCOW2Format
import TestSupport
import TestTools
import Testing

@testable import QCOW2Engine

@Suite struct SliceCacheTests {
  /// A file whose slices each hold their own offset, and a cache over it.
  private func make(slots: Int) throws -> (SimulatedHost, FaultyFile, ImageStorage, SliceCache) {
    let host = SimulatedHost(seed: 3)
    let bytes = ImageBytes(capacity: 1 << 20)
    for slice in 0..<64 { bytes.put64(UInt64(slice), slice * 512) }
    let file = FaultyFile(MemoryFile(bytes, host: host))
    let storage = ImageStorage(file: file, health: ImageHealth())
    return (host, file, storage, try SliceCache(sliceSize: 512, slots: slots))
  }

  private func increment(
    _ cache: SliceCache, _ slice: Int, _ storage: ImageStorage
  ) async throws -> UInt64 {
    try await cache.withSlice(
      HostOffset(UInt64(slice * 512)), storage: storage, makeRoom: {}
    ) { slice in
      slice.storeBE64(slice.bytes.be64(0) + 1000, 0)
      return slice.bytes.be64(0)
    }
  }

  @Test("Misses on one slice at the same time load it once and keep every change")
  func missesLoadOnce() throws {
    let (host, file, storage, cache) = try make(slots: 4)
    try host.run {
      try await withThrowingTaskGroup(of: Void.self) { group in
        for _ in 0..<10 { group.addTask { _ = try await self.increment(cache, 7, storage) } }
        try await group.waitForAll()
      }
      let value = try await self.increment(cache, 7, storage)
      #expect(value == 7 + 11_000)
    }
    #expect(file.counts[.read] == 1)
    #expect(cache.dirtyCount == 1)
  }

  @Test("A failed load fails its own request; those who waited try again")
  func aFailedLoadIsTriedAgain() throws {
    let (host, file, storage, cache) = try make(slots: 2)
    file.fault = Fault(.read, number: 1, errno: .io)
    let failures = Box(0)
    try host.run {
      await withTaskGroup(of: Void.self) { group in
        for _ in 0..<5 {
          group.addTask {
            do { _ = try await self.increment(cache, 3, storage) } catch { failures.value += 1 }
          }
        }
      }
      let value = try await self.increment(cache, 3, storage)
      #expect(value == 3 + 5000)
    }
    #expect(failures.value == 1)
  }

  @Test("Eviction takes clean slices only; when all are dirty the caller must make room")
  func evictionNeverDropsDirty() throws {
    let (host, _, storage, cache) = try make(slots: 3)
    let madeRoom = Box(0)
    try host.run {
      for slice in [1, 2] { _ = try await self.increment(cache, slice, storage) }
      for slice in 10..<30 {
        let value = try await cache.withSlice(
          HostOffset(UInt64(slice * 512)), storage: storage, makeRoom: {}
        ) { $0.bytes.be64(0) }
        #expect(value == UInt64(slice))
      }
      for slice in [1, 2] {
        let value = cache.withResident(HostOffset(UInt64(slice * 512))) { $0.be64(0) }
        #expect(value == UInt64(slice + 1000))
      }
      _ = try await self.increment(cache, 3, storage)
      let makeRoom = { () async throws(ImageError) in
        madeRoom.value += 1
        var dirty = cache.dirtyKeys()[...]
        let batch = WriteBackBatch(cache: cache)
        batch.take(from: &dirty)
        try await batch.write(to: storage)
      }
      let value = try await cache.withSlice(
        HostOffset(40 * 512), storage: storage, makeRoom: makeRoom
      ) { $0.bytes.be64(0) }
      #expect(value == 40)
      #expect(madeRoom.value == 1)
      #expect(cache.dirtyCount == 0)
    }
  }

  @Test("A change made while its slice is being written back stays dirty")
  func aChangeDuringWriteBackStaysDirty() throws {
    let (host, _, storage, cache) = try make(slots: 4)
    try host.run {
      _ = try await self.increment(cache, 5, storage)
      var dirty = cache.dirtyKeys()[...]
      let batch = WriteBackBatch(cache: cache)
      batch.take(from: &dirty)
      _ = try await self.increment(cache, 5, storage)
      try await batch.write(to: storage)
      #expect(cache.dirtyCount == 1)
      #expect(cache.dirtyKeys().map(\.key) == [5 * 512])
    }
  }

  @Test("The index finds every slice after any order of claims and removals")
  func theIndexSurvivesDeletion() throws {
    var random = SeededGenerator(seed: testSeed("index"))
    // Few home positions, so that probe sequences overlap.
    let hashOf = { (key: UInt64) -> UInt64 in key / 512 % 3 }
    let memory = try MetadataMemory()
    defer { withExtendedLifetime(memory) {} }
    let slots = try memory.region(
      .l2Slots, elementSize: MemoryLayout<CacheSlot>.stride, count: 8)
    let slices = try memory.region(.l2Slices, elementSize: 512, count: 8)
    var stripe = try CacheStripe(slots, slices, sliceSize: 512, first: 0, count: 8)
    var model: [UInt64: Int] = [:]
    for _ in 0..<5000 {
      let key = UInt64(random.below(20)) * 512
      if let slot = model[key] {
        if random.chance(50) {
          stripe.remove(slot, hashOf: hashOf)
          model[key] = nil
        }
      } else {
        let slot = stripe.claim(key, hash: hashOf(key), hashOf: hashOf)
        #expect(slot >= 0 || model.count == 8)
        if slot >= 0 {
          model = model.filter { $0.value != slot }
          model[key] = slot
          stripe.slots[slot].state = .resident
        }
      }
      for key in 0..<20 {
        let key = UInt64(key) * 512
        let found = stripe.find(key, hash: hashOf(key))
        if found != model[key] ?? -1 {
          Issue.record("slice \(key): slot \(found), expected \(model[key] ?? -1)")
          return
        }
      }
    }
  }

  @Test("A slice that is being loaded is not seen, by any of the ways that do not wait")
  func aSliceThatIsBeingLoadedIsNotSeen() throws {
    let (host, file, storage, cache) = try make(slots: 2)
    let gated = GatedFile(file)
    let key = HostOffset(7 * 512)
    try host.run {
      let storage = ImageStorage(file: gated, health: storage.health)
      // Of the slice that had the slot before, a byte that must not be taken for the new one's.
      for slice in [1, 2] { _ = try await cache.read(slice, storage) }
      gated.gate = key.bytes..<(key.bytes + 512)
      try await withThrowingTaskGroup(of: Void.self) { group in
        group.addTask {
          let value = try await cache.read(7, storage)
          #expect(value == 7)
        }
        while gated.held.isEmpty { await host.complete("tick") }
        #expect(cache.withResident(key) { $0.be64(0) } == nil)
        #expect(cache.residentWord(key.bytes) == 0)
        #expect(!cache.changeResident(key) { $0.mark() })
        gated.gate = nil
        try await group.waitForAll()
      }
      #expect(cache.withResident(key) { $0.be64(0) } == 7)
      #expect(cache.residentWord(key.bytes) == 7)
      #expect(cache.changeResident(key) { _ in } && cache.dirtyCount == 0)
    }
  }

  @Test("A new slice of zeros has none of the bytes that were in its slot")
  func aSliceOfZeros() throws {
    let (host, _, storage, cache) = try make(slots: 1)
    try host.run {
      _ = try await cache.read(5, storage)
      cache.insertZeroes(HostOffset(9 * 512))
      #expect(cache.withResident(HostOffset(9 * 512)) { $0.be64(0) } == 0)
    }
  }

  @Test("A failed load wakes those who wait for it", .timeLimit(.minutes(1)))
  func aFailedLoadWakes() throws {
    let (host, file, storage, cache) = try make(slots: 2)
    let gated = GatedFile(file)
    file.fault = Fault(.read, number: 1, errno: .io)
    try host.run {
      let storage = ImageStorage(file: gated, health: storage.health)
      gated.gate = 0..<(1 << 20)
      await withTaskGroup(of: Void.self) { group in
        // One loads the slice and is held; the others wait for it.
        for _ in 0..<3 { group.addTask { _ = try? await cache.read(3, storage) } }
        for _ in 0..<60 { await host.complete("tick") }
        #expect(gated.held.count == 1)
        gated.gate = nil
      }
    }
    #expect(file.counts[.read] == 2)
  }
}

extension SliceCache {
  /// The first word of a slice of 512 bytes.
  fileprivate func read(_ slice: Int, _ storage: ImageStorage) async throws -> UInt64 {
    try await withSlice(HostOffset(UInt64(slice * 512)), storage: storage, makeRoom: {}) {
      $0.bytes.be64(0)
    }
  }
}
