import BlockCore
import QCOW2Format
import TestSupport
import TestTools
import Testing

@testable import QCOW2Engine

/// Jobs beside the guest's requests: who has which worker number, and what goes back at the end.
@Suite struct JobSlotTests {
  private func bench() -> Bench {
    var builder = ImageBuilder()
    builder.clusterBits = 12
    builder.size = 4 << 20
    for cluster in 0..<8 { builder.mappings[cluster] = .data }
    let bench = Bench(builder, schedule: nil)
    bench.options.workers = 2
    bench.options.slotsPerWorker = 2
    bench.options.dirtyAgeMilliseconds = 1_000_000
    return bench
  }

  private func write(_ cluster: Int, _ buffer: IOBuffer) -> BlockRequest {
    SectorPattern.fill(buffer.base, change: 77, sector: cluster * 8)
    return BlockRequest(
      .write, offset: GuestOffset(UInt64(cluster) << 12), length: 512, data: buffer.data)
  }

  @Test("Jobs share no number with each other, with a worker or with a short operation")
  func numbersAreNotShared() throws {
    let bench = bench()
    try bench.host.run {
      let image = try await bench.open()
      let isOver = Box(false)
      let numbers = Box<[Int]>([])
      await withTaskGroup(of: Void.self) { group in
        for _ in 0...JobSlots.longCount {
          group.addTask {
            await image.withJobSlot { job in
              numbers.value.append(job.worker)
              while !isOver.value { await bench.host.complete("tick") }
            }
          }
        }
        for _ in 0..<JobSlots.shortCount {
          group.addTask {
            try? await image.withShortSlot { job in
              numbers.value.append(job.worker)
              while !isOver.value { await bench.host.complete("tick") }
            }
          }
        }
        for _ in 0..<50 { await bench.host.complete("tick") }
        // One job more than may run waits.
        #expect(numbers.value.count == JobSlots.count)
        #expect(Set(numbers.value).count == JobSlots.count, "\(numbers.value)")
        #expect(numbers.value.allSatisfy { $0 >= 2 })
        isOver.value = true
      }
      #expect(numbers.value.count == JobSlots.count + 1)
      try await image.close()
    }
  }

  @Test("Queries and a new size do not wait for jobs")
  func shortOperationsDoNotWaitForJobs() throws {
    let bench = bench()
    try bench.host.run {
      let image = try await bench.open()
      let isOver = Box(false)
      await withTaskGroup(of: Void.self) { group in
        for _ in 0..<JobSlots.longCount {
          group.addTask {
            await image.withJobSlot { _ in
              while !isOver.value { await bench.host.complete("tick") }
            }
          }
        }
        for _ in 0..<50 { await bench.host.complete("tick") }
        let found = try? await image.allocation(at: GuestOffset(0), length: 4096)
        #expect(found?.isAllocated == true)
        await #expect(throws: Never.self) { try await image.resize(to: 8 << 20) }
        isOver.value = true
      }
      #expect(image.size == 8 << 20)
      try await image.close()
    }
  }

  @Test("A query waits while the gate is shut, and has a stamp while it runs")
  func aQueryGoesThroughTheGate() throws {
    let bench = bench()
    try bench.host.run {
      let image = try await bench.open()
      let (isShut, isAnswered) = (Box(true), Box(false))
      await withTaskGroup(of: Void.self) { group in
        group.addTask {
          try? await image.exclusively { () async throws(ImageError) in
            while isShut.value { await bench.host.complete("tick") }
            #expect(!isAnswered.value)
            #expect(image.stamps.oldest() == .max)
          }
        }
        for _ in 0..<20 { await bench.host.complete("tick") }
        group.addTask {
          _ = try? await image.allocation(at: GuestOffset(0), length: 4096)
          isAnswered.value = true
        }
        for _ in 0..<50 { await bench.host.complete("tick") }
        #expect(!isAnswered.value)
        isShut.value = false
      }
      #expect(isAnswered.value)
      try await image.close()
    }
  }

  @Test("The clusters that a job reserved and did not use go back when it ends")
  func theArenaGoesBack() throws {
    let bench = bench()
    try bench.host.run {
      let image = try await bench.open()
      let buffer = IOBuffer(count: 512)
      let worker = await image.withJobSlot { job in
        #expect(await image.serve(self.write(20, buffer), worker: job.worker, slot: 1) == .done)
        #expect(!image.arenas.untaken()[job.worker].runs.isEmpty)
        return job.worker
      }
      #expect(image.arenas.untaken()[worker].runs.isEmpty)
      withExtendedLifetime(buffer) {}
      // A job that fails ends no other way.
      await #expect(throws: ImageError.self) {
        try await image.withJobSlot { job throws(ImageError) in
          #expect(job.worker == worker)
          throw .badRequest
        }
      }
      try await image.close()
    }
    let report = bench.verifier().check()
    #expect(report.errors.isEmpty && report.leaks == 0, "\(report)")
  }

  @Test("Four jobs write beside four workers, on threads of their own", arguments: [9, 12])
  func jobsWriteBesideTheGuest(clusterBits: Int) async throws {
    let seed = testSeed("jobs")
    let builder = ThreadRun.builder(clusterBits: clusterBits, hasSnapshot: clusterBits == 12)
    let file = MemoryFile(builder.build(capacity: 1 << 26))
    file.yields = true
    let image = try await Image.open(file, options: ThreadRun.options())
    let clients = (0..<16).map { number in
      ThreadClient(image: image, file: file, number: number, seed: seed)
    }
    // Behind the clients' part of the disk is room for the jobs.
    try await image.resize(to: image.size + 64 << 10)
    let threads = (0..<JobSlots.longCount).map { _ in ThreadExecutor() }
    await ThreadRun.run(clients, on: image) { _ in
      await withTaskGroup(of: Void.self) { group in
        for thread in threads {
          group.addTask(executorPreference: thread) {
            for _ in 0..<20 { await Self.rewrite(image) }
          }
        }
      }
    }
    for thread in threads { thread.stop() }
    ThreadRun.expectSound(ImageVerifier(file.bytes), clients)
  }

  /// Discards one of the last pages of the disk, and writes it anew.
  private static func rewrite(_ image: Image) async {
    await image.withJobSlot { job in
      let buffer = IOBuffer(count: 4096)
      defer { withExtendedLifetime(buffer) {} }
      let end = image.size - UInt64(job.worker) * 4096
      for operation in [BlockOperation.discard, .write] {
        let request = BlockRequest(
          operation, offset: GuestOffset(end), length: 4096, data: buffer.data)
        #expect(await image.serve(request, worker: job.worker, slot: 0) == .done)
      }
    }
  }
}
