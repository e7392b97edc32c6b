import BlockCore
import QCOW2Format
import Synchronization
import TestSupport
import TestTools
import Testing

@testable import QCOW2Engine

/// Snapshots that are taken while real threads write: each is the disk at one moment.
@Suite struct SnapshotThreadTests {
  /// Writes the sectors of its own region one after the other, in a ring.
  private final class Writer: @unchecked Sendable {  // why: used by one task, then by the test
    let first: Int
    let count: Int
    private let driver: MiniWorker
    private let slot: Int
    private let clock: Clock
    /// When each write began and ended, by one clock for all writers.
    private(set) var times: [(begin: Int, end: Int)] = []

    init(_ number: Int, _ image: Image, _ bench: Bench, count: Int, _ clock: Clock) {
      first = number * count
      self.count = count
      self.clock = clock
      slot = number / 2
      driver = MiniWorker(target: image, files: [bench.memory], worker: number % 2)
    }

    /// The write `number`, from 1, goes to this sector.
    func sector(_ number: Int) -> Int { first + number % count }

    func run(until isOver: Guarded<Bool>) async {
      let buffer = IOBuffer(count: 512)
      while !isOver.withLock({ $0 }) || times.count < 2 * count {
        let sector = sector(times.count + 1)
        SectorPattern.fill(buffer.base, change: UInt32(times.count + 1), sector: sector)
        let request = BlockRequest(
          .write, offset: GuestOffset(UInt64(sector) * 512), length: 512, data: buffer.data)
        let begin = clock.tick()
        #expect(await driver.perform(request, slot: slot) == nil)
        times.append((begin, clock.tick()))
        // Nothing waits for a host here: the other tasks of the thread need their turn.
        await Task.yield()
      }
      withExtendedLifetime(buffer) {}
    }

    /// The last write that is in `found`, if it and all before it are there, and none after it.
    func last(_ found: (Int) -> UInt32) -> Int? {
      let values = (first..<(first + count)).map { Int(found($0)) }
      let last = values.max() ?? 0
      for (index, value) in values.enumerated() {
        // The newest of the writes up to the last that went here.
        let wanted = last - ((last - index) % count + count) % count
        // Before the first round the sectors hold what the builder put there: nothing.
        if value != max(wanted, 0) { return nil }
      }
      return last
    }
  }

  private final class Clock: Sendable {
    private let now = Atomic(0)
    func tick() -> Int { now.add(1, ordering: .sequentiallyConsistent).newValue }
  }

  @Test(
    "A snapshot holds every write that ended before any of its writes began", arguments: [9, 12])
  func oneMoment(clusterBits: Int) async throws {
    var builder = ImageBuilder()
    builder.clusterBits = clusterBits
    builder.size = clusterBits == 9 ? 200 << 10 : 1 << 20
    let bench = Bench(builder, schedule: nil, isImmediate: true)
    bench.options = ThreadRun.options(workers: 2)
    // Without the layers for one thread that record and fail.
    let image = try await Image.open(bench.memory, options: bench.options)
    let clock = Clock()
    let count = builder.size / 512 / 4
    let writers = (0..<4).map { Writer($0, image, bench, count: count, clock) }
    let isOver = Guarded(false)
    let threads = (0..<3).map { _ in ThreadExecutor() }
    let span = Guarded((begin: 0, end: 0))
    await withTaskGroup(of: Void.self) { group in
      for (number, writer) in writers.enumerated() {
        group.addTask(executorPreference: threads[number % 2]) { await writer.run(until: isOver) }
      }
      group.addTask(executorPreference: threads[2]) {
        do {
          for round in 0..<6 {
            // The last one stays.
            if round > 0 { _ = try await image.deleteSnapshot(.id("1")) { _, _ in true } }
            let begin = clock.tick()
            let created = try await image.createSnapshot(named: "\(round)") { _, _ in true }
            #expect(created?.id == "1")
            span.withLock { $0 = (begin, clock.tick()) }
            await image.maintain()
          }
        } catch { Issue.record("\(error)") }
        isOver.withLock { $0 = true }
      }
    }
    await Task(executorPreference: threads[0]) {
      do { try await image.close() } catch { Issue.record("close: \(error)") }
    }.value
    for thread in threads { thread.stop() }
    ThreadRun.expectSound(bench.verifier())
    check(writers, bench, span.withLock { $0 })
  }

  private func check(_ writers: [Writer], _ bench: Bench, _ span: (begin: Int, end: Int)) {
    let verifier = bench.verifier()
    var lastBegin = 0
    var firstEnd = Int.max
    for writer in writers {
      let last = writer.last { SharingBench.found(verifier.snapshotSector($0), $0) }
      guard let last else {
        Issue.record("no moment of the writer at \(writer.first)")
        continue
      }
      #expect(writer.last { SharingBench.found(verifier.sector($0), $0) } == writer.times.count)
      if last > 0 { lastBegin = max(lastBegin, writer.times[last - 1].begin) }
      if last < writer.times.count { firstEnd = min(firstEnd, writer.times[last].end) }
    }
    #expect(lastBegin < firstEnd, "a write is there, and one that had ended before it is not")
    #expect(lastBegin < span.end)
    #expect(firstEnd > span.begin, "a write that had ended before is not there")
  }
}
