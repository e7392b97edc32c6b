import BlockCore
import QCOW2Format
import Synchronization
import TestSupport
import Testing

@testable import QCOW2Engine

/// Write-back whose tasks run on several threads at once, whatever executor that comes from.
///
/// Also for the thread sanitizer, as ``ConcurrencyTests``.
@Suite(.serialized) struct WriteBackConcurrencyTests {
  private static let slices = 400

  /// Every other slice of a file, dirty, so that no two are neighbours.
  private func dirtyCache(_ storage: ImageStorage) async throws -> SliceCache {
    let cache = try SliceCache(sliceSize: 512, slots: 2 * Self.slices)
    for number in 0..<Self.slices {
      try await cache.withSlice(
        HostOffset(UInt64(number) * 1024), storage: storage, makeRoom: {}
      ) { slice in
        slice.storeBE64(UInt64(number + 1), 0)
      }
    }
    return cache
  }

  @Test("Lanes on several threads write each slice once and leave none dirty")
  func lanesOnSeveralThreads() async throws {
    let executor = ManyThreads(4)
    for _ in 0..<20 {
      let file = CountingFile()
      let storage = ImageStorage(file: file, health: ImageHealth())
      let cache = try await dirtyCache(storage)
      try await Task(executorPreference: executor) {
        #expect(ReadBatch.mayRunTasks)
        let batch = WriteBackBatch(cache: cache)
        var dirty = cache.dirtyKeys()[...]
        batch.take(from: &dirty)
        #expect(dirty.isEmpty)
        try await batch.write(to: storage)
        #expect(batch.isEmpty)
      }.value
      #expect(cache.dirtyCount == 0)
      file.check(slices: Self.slices)
    }
    executor.stop()
  }

  @Test("A batch that failed writes nothing of it later")
  func aFailedBatchIsForgotten() async throws {
    let executor = ManyThreads(4)
    let file = CountingFile()
    let storage = ImageStorage(file: file, health: ImageHealth())
    let cache = try await dirtyCache(storage)
    try await Task(executorPreference: executor) {
      let batch = WriteBackBatch(cache: cache)
      var dirty = cache.dirtyKeys()[...]
      batch.take(from: &dirty)
      file.failsFrom.store(100, ordering: .relaxed)
      await #expect(throws: ImageError.self) { try await batch.write(to: storage) }
      #expect(batch.isEmpty && batch.sliceCount == 0)
      let written = file.writes.load(ordering: .relaxed)
      // A place that cannot be written keeps no other from being tried.
      #expect(written == Self.slices)
      #expect(cache.dirtyCount == Self.slices - file.succeeded)
      file.failsFrom.store(.max, ordering: .relaxed)
      try await batch.write(to: storage)
      #expect(file.writes.load(ordering: .relaxed) == written, "something stale was written")
      dirty = cache.dirtyKeys()[...]
      batch.take(from: &dirty)
      try await batch.write(to: storage)
    }.value
    #expect(cache.dirtyCount == 0)
    file.check(slices: Self.slices)
    executor.stop()
  }
}

/// A task executor of several threads, as no worker is one: jobs go to the threads in turn.
private final class ManyThreads: TaskExecutor {
  private let threads: [ThreadExecutor]
  private let next = Atomic<Int>(0)

  init(_ count: Int) { threads = (0..<count).map { _ in ThreadExecutor() } }

  func enqueue(_ job: consuming ExecutorJob) {
    let job = UnownedJob(job)
    let number = next.wrappingAdd(1, ordering: .relaxed).oldValue
    threads[number % threads.count].run(job, for: asUnownedTaskExecutor())
  }

  func stop() { for thread in threads { thread.stop() } }
}

/// Zeros to read, and a count of what is written where; takes a moment for each write.
private final class CountingFile: HostFile {
  let traits = HostFileTraits()
  let writes = Atomic<Int>(0)
  /// Writes with this number or a higher one fail.
  let failsFrom = Atomic<Int>(.max)
  private let written = Guarded<[UInt64: Int]>([:])

  var succeeded: Int { written.withLock { $0.count } }

  /// Each slice must have been written once.
  func check(slices: Int) {
    let written = written.withLock { $0 }
    #expect(written.count == slices)
    let wrong = written.filter { $0.value != 1 }
    #expect(wrong.isEmpty, "\(wrong.count) slices were written more than once")
  }

  func read(into buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    buffer.memory?.initializeMemory(as: UInt8.self, repeating: 0, count: buffer.count)
  }

  func write(from buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    let number = writes.wrappingAdd(1, ordering: .relaxed).oldValue
    await Task.yield()
    if number >= failsFrom.load(ordering: .relaxed) { throw .io }
    guard let memory = buffer.memory, buffer.count == 512,
      memory.be64(0) == offset.bytes / 1024 + 1
    else { throw .invalid }
    written.withLock { $0[offset.bytes, default: 0] += 1 }
  }

  func writeZeroes(at offset: HostOffset, length: UInt64) async throws(Errno) {}
  func punchHole(at offset: HostOffset, length: UInt64) async throws(Errno) {}
  func sync() async throws(Errno) {}
  func length() async throws(Errno) -> UInt64 { 1 << 20 }
  func setLength(_ length: UInt64) async throws(Errno) {}
  func extend(to length: UInt64) async throws(Errno) {}
}
