import BlockCore
import QCOW2Format
import TestSupport
import TestTools
import Testing

@testable import QCOW2Engine

/// Leaks go back while guests work: each of them, and nothing else.
@Suite(.serialized) struct LeakReturnTests {
  static let shapes: [ImageShape] =
    [
      ImageShape(clusterBits: 9, contents: .prefilled),
      ImageShape(clusterBits: 12, contents: .snapshot),
      ImageShape(clusterBits: 9, contents: .snapshot, isLazy: true),
    ] + ImageShape.compressing.prefix(3) + [ImageShape.extended[2], ImageShape.externalData[0]]

  @Test(
    "Four threads lose nothing while looks follow each other, and nothing is leaked afterwards",
    arguments: shapes)
  func looksUnderLoad(shape: ImageShape) async throws {
    let seed = testSeed("leaks and threads")
    let bench = ThreadRun.bench(shape)
    let contents = bench.originals.map { $0.copy() }
    let made = contents[0].leak(unused: 40, shared: 5)
    let files = bench.immediateFiles(contents, yields: true)
    let file = try #require(files[0] as? MemoryFile)
    let image = try await bench.open(files, options: bench.options)
    let clients = (0..<16).map {
      ThreadClient(image: image, files: files, number: $0, seed: seed)
    }
    let counts = Guarded((looks: 0, returned: 0, lowered: 0, isComplete: false))
    await ThreadRun.run(clients, on: image) { isOver in
      do {
        var looks = LeakLooks(image, file)
        while !isOver.withLock({ $0 }) { try await looks.look() }
        #expect(looks.tooLow.isEmpty)
        // The guests are gone: what they kept changing is seen now.
        for _ in 0..<20 where !looks.isComplete {
          try await looks.run(atMost: 1)
        }
        counts.withLock { $0 = (looks.looks, looks.returned, looks.lowered, looks.isComplete) }
      } catch { Issue.record("\(error)") }
    }
    let (looks, returned, lowered, isComplete) = counts.withLock { $0 }
    print("leaks: \(looks) looks, \(returned) returned, \(lowered) lowered, \(shape)")
    #expect(isComplete)
    #expect(looks > 5)
    #expect(returned == made.unused)
    #expect(lowered <= made.shared)
    ThreadRun.expectSound(bench.verifier(contents), clients)
  }

  @Test("The same while snapshots and bitmaps come and go and the disk grows", arguments: [9, 12])
  func looksUnderOperations(clusterBits: Int) async throws {
    let seed = testSeed("leaks and operations")
    let builder = ThreadRun.builder(clusterBits: clusterBits, hasSnapshot: true)
    let bytes = builder.build(capacity: 1 << 28)
    let made = bytes.leak(unused: 30, shared: 3)
    let file = MemoryFile(bytes)
    file.yields = true
    let image = try await Image.open(file, options: ThreadRun.options())
    let clients = (0..<16).map { ThreadClient(image: image, file: file, number: $0, seed: seed) }
    let total = Guarded(0)
    let thread = ThreadExecutor()
    await ThreadRun.run(clients, on: image, times: 2) { isOver in
      await withTaskGroup(of: Void.self) { group in
        group.addTask(executorPreference: thread) { await Self.administer(image, until: isOver) }
        do {
          var looks = LeakLooks(image, file)
          while !isOver.withLock({ $0 }) { try await looks.look() }
          await group.waitForAll()
          for _ in 0..<20 where !looks.isComplete { try await looks.run(atMost: 1) }
          #expect(looks.isComplete)
          #expect(looks.tooLow.isEmpty)
          print("leaks under operations: \(looks.looks) looks, \(looks.returned) returned")
          total.withLock { [looks] in $0 = looks.returned }
        } catch { Issue.record("\(error)") }
      }
    }
    thread.stop()
    #expect(total.withLock { $0 } >= made.unused)
    ThreadRun.expectSound(ImageVerifier(file.bytes), clients)
  }

  /// Changes of the image as a whole, one after the other.
  private static func administer(_ image: Image, until isOver: Guarded<Bool>) async {
    var number = 0
    do {
      while !isOver.withLock({ $0 }) {
        number += 1
        let snapshot = try await image.createSnapshot(named: "\(number)") { _, _ in true }
        try await image.changeBitmaps(.add("b", granularity: nil))
        if number < 20 { try await image.resize(to: image.size + (1 << 18)) }
        try await image.changeBitmaps(.remove("b"))
        if let snapshot { _ = try await image.deleteSnapshot(.id(snapshot.id)) { _, _ in true } }
        await image.maintain()
      }
    } catch { Issue.record("operation \(number): \(error)") }
  }

  // MARK: What a look says of an image that is quiet

  private func open(_ bytes: TestSupport.ImageBytes) async throws -> (Image, MemoryFile) {
    let file = MemoryFile(bytes)
    return (try await Image.open(file, options: ThreadRun.options(workers: 1)), file)
  }

  private func run(_ body: @escaping @Sendable () async throws -> Void) throws {
    try SimulatedHost(seed: nil).run(body)
  }

  @Test("A refcount that is too high for a cluster in use goes down, and COPIED is set")
  func sharedLeaks() throws {
    try run {
      let bytes = ThreadRun.builder(clusterBits: 12).build(capacity: 1 << 27)
      // As after a snapshot that did not come to be: no COPIED, and references that nothing has.
      let table = Int(bytes.be64(Int(bytes.be64(40))) & 0x00ff_ffff_ffff_fe00)
      for index in [3, 7, 8] {
        let entry = bytes.be64(table + index * 8)
        bytes.put64(entry & ~(1 << 63), table + index * 8)
        bytes.setRefcount(2, of: Int(entry & 0x00ff_ffff_ffff_fe00) >> 12)
      }
      let (image, file) = try await open(bytes)
      var looks = LeakLooks(image, file)
      try await looks.run(atMost: 1)
      #expect(looks.isComplete)
      #expect(looks.lowered == 3)
      try await image.close()
      ThreadRun.expectSound(ImageVerifier(bytes))
    }
  }

  @Test("A refcount that is too low is reported and left alone")
  func tooLow() throws {
    try run {
      let bytes = ThreadRun.builder(clusterBits: 12, hasSnapshot: true).build(capacity: 1 << 27)
      let made = bytes.leak(unused: 4, shared: 0)
      let shared = try #require((1..<100).first { bytes.refcount(of: $0) == 2 })
      bytes.setRefcount(1, of: shared)
      let (image, file) = try await open(bytes)
      var looks = LeakLooks(image, file)
      try await looks.run(atMost: 1)
      #expect(looks.tooLow.map(\.cluster) == [HostCluster(UInt64(shared))])
      #expect(looks.returned == made.unused)
      try await image.close()
      #expect(bytes.refcount(of: shared) == 1)
    }
  }

  @Test("Nothing goes back where a table cannot be followed")
  func hiddenReferences() throws {
    try run {
      var builder = ThreadRun.builder(clusterBits: 9)
      builder.hasSnapshot = true
      let bytes = builder.build(capacity: 1 << 27)
      _ = bytes.leak(unused: 4, shared: 0)
      // The snapshot's first L1 entry leads to the middle of a cluster.
      let l1 = Int(bytes.be64(Int(bytes.be64(64))))
      bytes.put64(bytes.be64(l1) + 256, l1)
      let (image, file) = try await open(bytes)
      var looks = LeakLooks(image, file)
      try await looks.run(atMost: 2)
      #expect(looks.obstacle != nil)
      #expect(looks.returned == 0)
      #expect(!looks.isComplete)
    }
  }

  @Test("A look knows what is reserved, let go of and packed when it begins")
  func whatIsSetAside() throws {
    try run {
      let bytes = ThreadRun.builder(clusterBits: 12, hasSnapshot: true).build(capacity: 1 << 27)
      let file = MemoryFile(bytes)
      var options = ThreadRun.options(workers: 1)
      options.dirtyAgeMilliseconds = 1_000_000
      let image = try await Image.open(file, options: options)
      let driver = MiniWorker(target: image, files: [file], worker: 0)
      let buffer = IOBuffer(count: 4096)
      buffer.base.initializeMemory(as: UInt8.self, repeating: 7, count: 4096)
      let write = BlockRequest(.write, offset: GuestOffset(0), length: 4096, data: buffer.data)
      #expect(await driver.perform(write, slot: 0) == nil)
      let discard = BlockRequest(.discard, offset: GuestOffset(4096), length: 8192)
      #expect(await driver.perform(discard, slot: 0) == nil)
      #expect(!image.supply.frees.runs.isEmpty)
      #expect(!image.supply.untaken.isEmpty)
      let freed = image.supply.frees.runs.map(\.start)
      var looks = LeakLooks(image, file)
      looks.between = { for cluster in freed { #expect(image.standing(of: cluster) != .constant) } }
      try await looks.look()
      #expect(looks.returned == 0)
      try await image.close()
      withExtendedLifetime(buffer) {}
      ThreadRun.expectSound(ImageVerifier(bytes))
    }
  }
}

/// The sets of clusters of a look.
@Suite struct LeakWatchTests {
  private func cluster(_ number: UInt64) -> HostCluster { HostCluster(number) }

  @Test func `a note is taken while a look is under way`() throws {
    let watch = LeakWatch()
    try watch.prepare(cluster(1000))
    watch.note(cluster(5)..<cluster(6))
    watch.begin(reserved: [cluster(60)..<cluster(130)], freed: [cluster(3)..<cluster(4)])
    #expect(!watch.knows(cluster(5)))
    #expect((58..<132).filter { watch.knows(cluster($0)) } == Array(60..<130))
    #expect(watch.isPast(cluster(64)))
    #expect(watch.knows(cluster(3)) && !watch.isPast(cluster(3)))
    watch.note(cluster(200)..<cluster(201))
    watch.noteFree(cluster(500))
    #expect(watch.knows(cluster(200)) && !watch.isPast(cluster(200)))
    #expect(watch.knows(cluster(500)) && watch.isPast(cluster(500)))
    #expect(watch.firstFree { _ in true } == cluster(500))
    #expect(watch.firstFree { $0 != cluster(500) } == nil)
    // Behind the end nothing is judged.
    #expect(watch.knows(cluster(1 << 40)))
    watch.note(cluster(900)..<cluster(1 << 40))
    #expect(watch.knows(cluster(901)))
    watch.end()
    #expect(watch.knows(cluster(7)))
    watch.begin(reserved: [], freed: [])
    #expect(!watch.knows(cluster(200)))
    #expect(watch.firstFree { _ in true } == nil)
  }
}
