import BlockCore
import QCOW2Format
import TestSupport
import TestTools
import Testing

@testable import QCOW2Engine

/// Tables and clusters that become shared, and the disk's own again, while the guest writes.
@Suite struct SharingTests {
  struct Shape: Sendable, CustomTestStringConvertible {
    var clusterBits: Int
    var isExtended = false
    var refcountOrder = 4
    var testDescription: String { "\(clusterBits) \(isExtended) \(refcountOrder)" }
  }

  static let shapes = [
    Shape(clusterBits: 9), Shape(clusterBits: 12, refcountOrder: 2), Shape(clusterBits: 13),
    Shape(clusterBits: 14, isExtended: true),
  ]

  private func bench(_ shape: Shape, schedule: UInt64?) -> Bench {
    var builder = ImageBuilder()
    builder.clusterBits = shape.clusterBits
    builder.refcountOrder = shape.refcountOrder
    builder.features.isExtended = shape.isExtended
    builder.size = 96 << shape.clusterBits
    for cluster in 0..<48 where cluster % 5 != 4 { builder.mappings[cluster] = .data }
    builder.mappings[48] = .compressed
    builder.mappings[49] = .compressed
    builder.mappings[50] = .zero
    if !shape.isExtended { builder.mappings[51] = .allocatedZero }
    let bench = Bench(builder, schedule: schedule)
    bench.options.workers = 2
    bench.options.slotsPerWorker = 4
    bench.options.dirtyAgeMilliseconds = 0
    return bench
  }

  /// Writes and discards at random, and what the daemon does beside it.
  static func work(_ guest: SharingBench, _ seed: UInt64, until isOver: Box<Bool>) async {
    let perCluster = 1 << (guest.bench.builder.clusterBits - 9)
    await withTaskGroup(of: Void.self) { group in
      for number in 0..<4 {
        group.addTask {
          var random = SeededGenerator(seed: seed &* 10 &+ UInt64(number))
          // Each has clusters of its own, so that what a sector holds is known.
          while !isOver.value {
            let cluster = random.below(24) * 4 + number
            let first = cluster * perCluster
            let discards = random.chance(15)
            let start = discards ? 0 : random.below(perCluster)
            let count = discards ? perCluster : 1 + random.below(perCluster - start)
            await guest.change(
              (first + start)..<(first + start + count), discards: discards,
              worker: number % 2, slot: number / 2, plans: random.chance(70))
          }
        }
      }
      group.addTask {
        while !isOver.value {
          await guest.image.maintain()
          for _ in 0..<5 { await guest.bench.host.complete("tick") }
        }
      }
    }
  }

  static func wait(_ guest: SharingBench, _ ticks: Int) async {
    for _ in 0..<ticks { await guest.bench.host.complete("tick") }
  }

  @Test(
    "A snapshot taken while the guest writes reads as at the cut; after it is deleted, check is clean",
    arguments: shapes, [false, true])
  func aSnapshotWhileServing(shape: Shape, drops: Bool) throws {
    for run in 0..<testSetting("QUBLK_SHARING_RUNS", default: 6) {
      let seed = testSeed("sharing") &+ UInt64(run)
      let bench = bench(shape, schedule: seed)
      let found = Box<[String]>([])
      try bench.host.run {
        let guest = try await SharingBench(bench)
        let isOver = Box(false)
        let failure = Box<(any Error)?>(nil)
        await withTaskGroup(of: Void.self) { group in
          group.addTask { await Self.work(guest, seed, until: isOver) }
          do {
            await Self.wait(guest, 60)
            try await guest.cut()
            await Self.wait(guest, 60)
            try await guest.count()
            await Self.wait(guest, 60)
            if drops {
              try await guest.drop()
              await Self.wait(guest, 60)
              try await guest.settle()
              guest.image.tables.sharing.endDropping()
              await Self.wait(guest, 60)
            }
          } catch { failure.value = error }
          isOver.value = true
        }
        if let failure = failure.value { throw failure }
        found.value = try await guest.finish()
      }
      #expect(found.value.isEmpty, "run \(run): \(found.value)")
    }
  }

  @Test("A power cut finds the snapshot whole or not at all", arguments: shapes, [false, true])
  func aPowerCut(shape: Shape, drops: Bool) throws {
    let seed = testSeed("sharing cut")
    let bench = bench(shape, schedule: seed)
    let guest = Box<SharingBench?>(nil)
    try bench.host.run {
      let own = try await SharingBench(bench)
      guest.value = own
      let isOver = Box(false)
      let failure = Box<(any Error)?>(nil)
      await withTaskGroup(of: Void.self) { group in
        group.addTask { await Self.work(own, seed, until: isOver) }
        do {
          await Self.wait(own, 20)
          try await own.cut()
          await Self.wait(own, 20)
          try await own.count()
          await Self.wait(own, 20)
          if drops { try await own.drop() }
        } catch { failure.value = error }
        isOver.value = true
      }
      if let failure = failure.value { throw failure }
    }
    let crashes = CrashEnumerator(
      originals: bench.originals, events: bench.recording.events, seed: seed)
    var withSnapshot = 0
    crashes.visit(perCut: 1) { state in
      if state.bytes.be32(60) > 0 { withSnapshot += 1 }
      guard let problem = guest.value?.crashProblem(state.bytes) else { return true }
      Issue.record("\(problem) — \(state.description)")
      return false
    }
    #expect(withSnapshot > 0 && withSnapshot < crashes.count)
  }

  /// Runs a simulation of a guest that does one thing at a time.
  private func simulate(
    _ shape: Shape, _ body: @escaping @Sendable (SharingBench) async throws -> Void
  ) throws {
    let bench = bench(shape, schedule: nil)
    bench.options.dirtyAgeMilliseconds = 1_000_000
    try bench.host.run {
      let guest = try await SharingBench(bench)
      try await body(guest)
      let problems = try await guest.finish()
      #expect(problems.isEmpty, "\(problems)")
    }
  }

  @Test(
    "A cluster is copied while a snapshot has it and written in place when it is deleted",
    arguments: shapes, [false, true])
  func inPlaceAgain(shape: Shape, settlesFirst: Bool) throws {
    try simulate(shape) { guest in
      let perCluster = 1 << (shape.clusterBits - 9)
      let place = try await guest.host(of: 1)
      try await guest.cut()
      // Before the references are counted and after: the snapshot keeps its cluster.
      await guest.change(perCluster..<(perCluster + 1))
      let copy = try await guest.host(of: 1)
      #expect(copy != place)
      try await guest.count()
      let second = try await guest.host(of: 2)
      await guest.change((2 * perCluster)..<(2 * perCluster + 1))
      #expect(try await guest.host(of: 2) != second)
      await guest.change(perCluster..<(perCluster + 1))
      #expect(try await guest.host(of: 1) == copy)
      let third = try await guest.host(of: 3)
      try await guest.drop()
      if settlesFirst {
        try await guest.settle()
        guest.image.tables.sharing.endDropping()
      }
      await guest.change((3 * perCluster)..<(3 * perCluster + 1))
      #expect(try await guest.host(of: 3) == third)
      if !settlesFirst {
        try await guest.settle()
        guest.image.tables.sharing.endDropping()
      }
    }
  }

  @Test("A table that was never copied is written in place again, too", arguments: shapes)
  func aTableInPlaceAgain(shape: Shape) throws {
    try simulate(shape) { guest in
      let tables = guest.image.tables
      let table = tables.place(0).table ?? HostOffset(0)
      try await guest.cut()
      try await guest.count()
      #expect(tables.place(0) == .at(table, isOwn: false))
      try await guest.drop()
      await guest.change(0..<1)
      #expect(tables.place(0) == .at(table, isOwn: true))
      try await guest.settle()
      tables.sharing.endDropping()
    }
  }

  @Test("A shared table is copied with what is in memory, not with what the host file has")
  func dirtySlicesAreCopied() throws {
    try simulate(Shape(clusterBits: 13)) { guest in
      let image = guest.image
      // A new cluster, whose entry the host file does not have yet.
      await guest.change(1280..<1281)
      let place = try await guest.host(of: 80)
      #expect(image.l2.dirtyCount > 0)
      await image.gate.close(image.stamps)
      let tree = image.beginSharing()
      image.gate.open()
      await guest.change(0..<1)
      #expect(try await guest.host(of: 80) == place)
      #expect(image.tables.place(0).table != tree[0].l2Table)
      // Nobody wants this snapshot.
      image.endSharing()
      image.tables.sharing.beginDropping()
      try await guest.settle()
      image.tables.sharing.endDropping()
    }
  }

  @Test("While a snapshot is counted, no cluster goes back, and its refcount says nothing")
  func nothingGoesBackWhileCounting() throws {
    try simulate(Shape(clusterBits: 12)) { guest in
      let image = guest.image
      image.tables.sharing.beginDropping()
      try await guest.cut()
      let place = try await guest.host(of: 1)
      await guest.change(8..<9)
      #expect(try await guest.host(of: 1) != place)
      for _ in 0..<3 {
        try await image.flush()
        await image.maintain()
      }
      let cluster = HostCluster((place ?? 0) >> 12)
      #expect(try await image.allocator.refcount(of: cluster) == 1)
      try await guest.count()
      for _ in 0..<3 {
        try await image.flush()
        await image.maintain()
      }
      // The snapshot's reference is all that is left.
      #expect(try await image.allocator.refcount(of: cluster) == 1)
      image.tables.sharing.endDropping()
    }
  }
}
