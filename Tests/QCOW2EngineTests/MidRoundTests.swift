import BlockCore
import TestSupport
import Testing

@testable import QCOW2Engine

/// What a guest does in the middle of a flush round, at every step of the round.
///
/// The power is then cut at every moment. A round writes what was there when it began: a later
/// change belongs to the next round as a whole, with its refcounts, its tables and what it freed.
@Suite struct MidRoundTests {
  enum Change: String, CaseIterable, Sendable {
    case newTable, newCluster, discard, writeAndFlush
  }

  enum Shape: String, CaseIterable, Sendable {
    case plain, shared, lazy, extended

    var builder: ImageBuilder {
      var builder = ImageBuilder()
      builder.clusterBits = self == .extended ? 14 : 9
      builder.size = 4 * perTable << builder.clusterBits
      builder.features.isExtended = self == .extended
      builder.hasSnapshot = self == .shared
      builder.compatible = self == .lazy ? 1 : 0
      for cluster in 0..<8 { builder.mappings[cluster] = .data }
      return builder
    }

    /// The guest clusters of an L2 table.
    var perTable: Int { self == .extended ? 1024 : 64 }
  }

  @Test(
    "A change in the middle of a round is the next round's, whatever the step",
    arguments: Change.allCases, Shape.allCases)
  func aChangeInTheMiddleOfARound(change: Change, shape: Shape) throws {
    for step in 1...24 {
      let isHeld = try run(change, shape, step)
      if isHeld { continue }
      #expect(step > 3, "the round has \(step - 1) operations only")
      return
    }
    Issue.record("the round has no end")
  }

  /// Returns whether the round has so many steps.
  private func run(_ change: Change, _ shape: Shape, _ step: Int) throws -> Bool {
    let bench = Bench(shape.builder, schedule: nil)
    bench.options.workers = 2
    bench.options.slotsPerWorker = 4
    bench.options.dirtyAgeMilliseconds = 1_000_000
    let held = HeldFile(bench.recording)
    let guest = Guest(bench, held, perCluster: (1 << bench.builder.clusterBits) / 512)
    let wasHeld = Box(false)
    try bench.host.run {
      let image = try await bench.open([held], options: bench.options)
      // Something for each stage of the round: refcounts, both tables, and a cluster let go.
      await guest.write(image, cluster: 20, worker: 0)
      await guest.write(image, cluster: shape.perTable + 1, worker: 0)
      await guest.discard(image, cluster: 2, worker: 0)
      held.number = step
      let isOver = Box(false)
      await withTaskGroup(of: Void.self) { group in
        group.addTask {
          await guest.flush(image)
          isOver.value = true
        }
        while !held.isHolding && !isOver.value { await bench.host.complete("tick") }
        guard held.isHolding else { return held.release() }
        wasHeld.value = true
        await guest.carryOut(change, image, perTable: shape.perTable)
        if change == .writeAndFlush {
          group.addTask { await guest.flush(image) }
          for _ in 0..<20 { await bench.host.complete("tick") }
        }
        held.release()
      }
      for _ in 0..<2 { await image.maintain() }
      // Gives the power a moment to fail after all that was acknowledged.
      await guest.write(image, cluster: 0, worker: 0)
    }
    #expect(bench.memory.violations.isEmpty)
    // None and all of what no barrier covers: what belongs to another round shows in one of them.
    _ = try CrashCheck(bench, seed: UInt64(step)).run(perCut: 0)
    return wasHeld.value
  }

  /// Changes whole clusters, and tells the model.
  private struct Guest: Sendable {
    let bench: Bench
    let file: HeldFile
    let perCluster: Int

    init(_ bench: Bench, _ file: HeldFile, perCluster: Int) {
      self.bench = bench
      self.file = file
      self.perCluster = perCluster
    }

    /// By the second worker, whose arena is empty: its clusters are reserved now.
    func carryOut(_ change: Change, _ image: Image, perTable: Int) async {
      switch change {
      case .newTable: await write(image, cluster: 2 * perTable + 3, worker: 1)
      case .newCluster, .writeAndFlush: await write(image, cluster: perTable + 5, worker: 1)
      case .discard: await discard(image, cluster: 5, worker: 1)
      }
    }

    func write(_ image: Image, cluster: Int, worker: Int) async {
      let driver = MiniWorker(target: image, file: file, worker: worker)
      let sectors = (cluster * perCluster)..<((cluster + 1) * perCluster)
      #expect(await bench.write(sectors, by: driver) == nil)
    }

    func discard(_ image: Image, cluster: Int, worker: Int) async {
      let sectors = (cluster * perCluster)..<((cluster + 1) * perCluster)
      let change = bench.model.begin(sectors, isZero: true)
      let request = BlockRequest(
        .discard, offset: GuestOffset(UInt64(sectors.lowerBound * 512)),
        length: UInt64(perCluster * 512))
      #expect(await image.serve(request, worker: worker, slot: 1).errno == nil)
      bench.model.end(change)
    }

    func flush(_ image: Image) async {
      let number = bench.model.beginFlush()
      do { try await image.flush() } catch { Issue.record("flush: \(error)") }
      bench.model.endFlush(number, failed: false)
    }
  }
}
