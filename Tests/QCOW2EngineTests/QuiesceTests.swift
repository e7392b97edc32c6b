import BlockCore
import QCOW2Format
import Synchronization
import TestSupport
import TestTools
import Testing

@testable import QCOW2Engine

/// Waiting until every request from before has ended, at an open gate.
@Suite struct QuiesceTests {
  private func bench(slots: Int = 4) -> Bench {
    var builder = ImageBuilder()
    builder.clusterBits = 12
    builder.size = 1 << 20
    for cluster in 0..<64 { builder.mappings[cluster] = .data }
    let bench = Bench(builder, schedule: nil)
    bench.options.workers = 2
    bench.options.slotsPerWorker = slots
    bench.options.dirtyAgeMilliseconds = 1_000_000
    return bench
  }

  /// Plans a request on the hit path, which is then in flight.
  private static func begin(
    _ image: Image, _ operation: BlockOperation = .write, worker: Int, slot: Int,
    _ buffer: IOBuffer
  ) -> Bool {
    let request = BlockRequest(
      operation, offset: GuestOffset(UInt64(slot) << 12), length: 512, data: buffer.data)
    return withUnsafeTemporaryAllocation(of: HostTransfer.self, capacity: 4) { plan in
      if case .transfers = image.plan(request, worker: worker, slot: slot, into: plan) {
        return true
      }
      return false
    }
  }

  /// Runs a simulation on an image whose tables are in memory.
  private func simulate(
    _ body: @escaping @Sendable (Image, IOBuffer, Bench) async throws -> Void
  ) throws {
    let bench = bench()
    try bench.host.run {
      let image = try await bench.open()
      let buffer = IOBuffer(count: 512)
      let read = BlockRequest(.read, offset: GuestOffset(0), length: 512, data: buffer.data)
      #expect(await image.serve(read, worker: 0, slot: 0) == .done)
      try await body(image, buffer, bench)
      withExtendedLifetime(buffer) {}
      #expect(image.gate.isQuiet)
      try await image.close()
    }
  }

  private func settle(_ bench: Bench) async {
    for _ in 0..<20 { await bench.host.complete("tick") }
  }

  @Test(
    "It waits for reads and writes of the hit path that were planned before, and for no others",
    arguments: [BlockOperation.read, .write])
  func itWaitsForTheHitPath(operation: BlockOperation) throws {
    try simulate { image, buffer, bench in
      #expect(Self.begin(image, operation, worker: 0, slot: 1, buffer))
      #expect(Self.begin(image, operation, worker: 1, slot: 3, buffer))
      let isOver = Box(false)
      await withTaskGroup(of: Void.self) { group in
        group.addTask {
          await #expect(throws: Never.self) { try await image.quiesce() }
          isOver.value = true
        }
        await settle(bench)
        #expect(!isOver.value)
        // One that begins now ends whenever it likes, the gate being open.
        #expect(image.gate.isOpen)
        #expect(Self.begin(image, operation, worker: 1, slot: 2, buffer))
        #expect(image.finish(worker: 1, slot: 3, failed: false) == .done)
        await settle(bench)
        #expect(!isOver.value)
        #expect(image.finish(worker: 0, slot: 1, failed: true) == .done)
        await settle(bench)
        #expect(isOver.value)
      }
      #expect(image.finish(worker: 1, slot: 2, failed: false) == .done)
    }
  }

  @Test("A slot that is used again at once does not hold it up")
  func aSlotThatIsUsedAgain() throws {
    try simulate { image, buffer, bench in
      #expect(Self.begin(image, worker: 0, slot: 0, buffer))
      let isOver = Box(false)
      await withTaskGroup(of: Void.self) { group in
        group.addTask {
          await #expect(throws: Never.self) { try await image.quiesce() }
          isOver.value = true
        }
        await settle(bench)
        #expect(image.finish(worker: 0, slot: 0, failed: false) == .done)
        #expect(Self.begin(image, worker: 0, slot: 0, buffer))
        await settle(bench)
        #expect(isOver.value)
      }
      #expect(image.finish(worker: 0, slot: 0, failed: false) == .done)
    }
  }

  @Test("It waits for the slow path, and for a write into a new cluster")
  func itWaitsForTheSlowPath() throws {
    let bench = bench()
    try bench.host.run {
      let gated = GatedFile(bench.files[0])
      let image = try await bench.open([gated] + bench.files[1...], options: bench.options)
      let worker = MiniWorker(target: image, files: [gated], worker: 0)
      let buffer = IOBuffer(count: 512)
      let isOver = Box(false)
      gated.operations = [.read, .write]
      for (cluster, operation) in [(3, BlockOperation.read), (100, .write), (101, .write)] {
        gated.gate = 0..<(1 << 40)
        isOver.value = false
        await withTaskGroup(of: Void.self) { group in
          group.addTask {
            let request = BlockRequest(
              operation, offset: GuestOffset(UInt64(cluster) << 12), length: 512,
              data: buffer.data)
            #expect(await worker.perform(request, slot: 1) == nil)
          }
          await settle(bench)
          #expect(!gated.held.isEmpty)
          group.addTask {
            await #expect(throws: Never.self) { try await image.quiesce() }
            isOver.value = true
          }
          await settle(bench)
          #expect(!isOver.value)
          gated.gate = nil
        }
        #expect(isOver.value)
      }
      withExtendedLifetime(buffer) {}
      try await image.close()
    }
  }

  @Test("Several wait at once, each for its own requests; one that is cancelled leaves the others")
  func severalWait() throws {
    try simulate { image, buffer, bench in
      let ends = Box<[Int]>([])
      let isCancelled = Box(false)
      #expect(Self.begin(image, worker: 0, slot: 0, buffer))
      let first = Task(executorPreference: bench.host) {
        await #expect(throws: Never.self) { try await image.quiesce() }
        ends.value.append(1)
      }
      await settle(bench)
      #expect(Self.begin(image, worker: 1, slot: 1, buffer))
      let second = Task(executorPreference: bench.host) {
        await #expect(throws: Never.self) { try await image.quiesce() }
        ends.value.append(2)
      }
      let third = Task(executorPreference: bench.host) {
        await #expect(throws: CancellationError.self) { try await image.quiesce() }
        isCancelled.value = true
      }
      await settle(bench)
      third.cancel()
      await third.value
      #expect(isCancelled.value && ends.value == [])
      #expect(image.finish(worker: 0, slot: 0, failed: false) == .done)
      await first.value
      #expect(ends.value == [1])
      await settle(bench)
      #expect(ends.value == [1])
      #expect(image.finish(worker: 1, slot: 1, failed: false) == .done)
      await second.value
      #expect(ends.value == [1, 2])
    }
  }

  @Test("A cut waits for the requests, too, while somebody else waits at the open gate")
  func aCutBesideIt() throws {
    try simulate { image, buffer, bench in
      #expect(Self.begin(image, worker: 0, slot: 0, buffer))
      let order = Box<[String]>([])
      await withTaskGroup(of: Void.self) { group in
        group.addTask {
          await #expect(throws: Never.self) { try await image.quiesce() }
          order.value.append("quiet")
        }
        group.addTask {
          try? await image.exclusively { () async throws(ImageError) in
            order.value.append("alone")
          }
        }
        await settle(bench)
        #expect(order.value.isEmpty && !image.gate.isOpen)
        #expect(image.finish(worker: 0, slot: 0, failed: false) == .done)
      }
      #expect(Set(order.value) == ["quiet", "alone"])
    }
  }

  @Test("On threads: after it, nobody goes by what was in force before")
  func nobodyGoesByWhatWasBefore() async throws {
    let bench = bench(slots: 2)
    let image = try await Image.open(MemoryFile(bench.original.copy()), options: bench.options)
    let buffer = IOBuffer(count: 512)
    let read = BlockRequest(.read, offset: GuestOffset(0), length: 512, data: buffer.data)
    #expect(await image.serve(read, worker: 0, slot: 0) == .done)
    let race = EpochRace(image, workers: 2)
    let threads = (0..<3).map { _ in ThreadExecutor() }
    let rounds = testSetting("QUBLK_QUIESCE_ROUNDS", default: 1000)
    await withTaskGroup(of: Void.self) { group in
      for worker in 0..<2 {
        group.addTask(executorPreference: threads[worker]) { race.serve(worker, buffer) }
      }
      group.addTask(executorPreference: threads[2]) { await race.advance(rounds) }
    }
    for thread in threads { thread.stop() }
    #expect(race.late.load(ordering: .relaxed) == 0)
    withExtendedLifetime(buffer) {}
    try await image.close()
  }

  /// Workers that go by a number for as long as a request takes, and a job that changes it.
  private final class EpochRace: Sendable {
    private let image: Image
    private let epoch = Atomic<Int>(1)
    private let isOver = Atomic<Bool>(false)
    /// What each worker's request goes by; 0 while there is none.
    private let used = [SharedNumber(), SharedNumber()]
    /// Requests found to go by an old number after a grace period.
    let late = Atomic<Int>(0)

    init(_ image: Image, workers: Int) { self.image = image }

    func serve(_ worker: Int, _ buffer: IOBuffer) {
      while !isOver.load(ordering: .relaxed) {
        guard QuiesceTests.begin(image, worker: worker, slot: 0, buffer) else { continue }
        used[worker].value.store(
          epoch.load(ordering: .sequentiallyConsistent), ordering: .sequentiallyConsistent)
        for _ in 0..<(worker * 50) { _ = epoch.load(ordering: .sequentiallyConsistent) }
        used[worker].value.store(0, ordering: .sequentiallyConsistent)
        _ = image.finish(worker: worker, slot: 0, failed: false)
      }
    }

    func advance(_ rounds: Int) async {
      for round in 2...rounds {
        epoch.store(round, ordering: .sequentiallyConsistent)
        try? await image.quiesce()
        for number in used {
          let found = number.value.load(ordering: .sequentiallyConsistent)
          if found != 0 && found < round { late.wrappingAdd(1, ordering: .relaxed) }
        }
      }
      isOver.store(true, ordering: .relaxed)
    }
  }

  private final class SharedNumber: Sendable {
    let value = Atomic<Int>(0)
  }
}
