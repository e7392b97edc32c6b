import BlockCore
import QCOW2Engine
import TestSupport
import TestTools
import Testing

/// An image lets go of all that it has of its own.
@Suite struct EmptyingTests {
  static let shapes: [ImageShape] = {
    var shapes: [ImageShape] = []
    for bits in [9, 12] {
      for contents in [ImageShape.Contents.prefilled, .preallocatedZero, .snapshot] {
        shapes.append(ImageShape(clusterBits: bits, contents: contents))
      }
    }
    shapes.append(ImageShape(clusterBits: 9, version: 2, contents: .prefilled))
    shapes.append(ImageShape(clusterBits: 9, refcountOrder: 6, contents: .prefilled))
    shapes.append(ImageShape(clusterBits: 12, contents: .prefilled, isLazy: true))
    shapes.append(ImageShape(clusterBits: 12, contents: .snapshot, hasCompressed: true))
    var extended = ImageFeatures()
    extended.isExtended = true
    shapes.append(ImageShape(clusterBits: 14, contents: .prefilled, features: extended))
    var external = ImageFeatures()
    external.dataFile = .plain
    shapes.append(ImageShape(clusterBits: 12, contents: .prefilled, features: external))
    return shapes.map { shape in
      var shape = shape
      shape.features.backing = .equal
      return shape
    }
  }()

  /// The sectors of a disk that are worth a look.
  private func sectors(_ bench: Bench) -> [Int] {
    bench.model.touched.filter { $0 % 3 == 0 }
  }

  /// What each of them holds at first, and what the backing file has there.
  private func changes(_ bench: Bench) -> [(sector: Int, own: UInt32?, below: UInt32)] {
    let verifier = bench.verifier(bench.originals)
    let zeros = IOBuffer(count: 512)
    return sectors(bench).map { sector in
      let found = verifier.sector(sector) ?? UnsafeRawPointer(zeros.base)
      return (sector, SectorPattern.change(in: found, sector: sector), bench.model.initial(sector))
    }
  }

  private func empty(_ shape: ImageShape, seed: UInt64?) throws -> Bench {
    let bench = Bench(shape.builder, schedule: seed)
    try bench.host.run {
      let image = try await bench.open()
      try await image.makeEmpty()
      try await image.close()
    }
    return bench
  }

  @Test("The backing file shows everywhere, snapshots stay, and nothing leaks", arguments: shapes)
  func backingFileShows(shape: ImageShape) throws {
    let bench = try empty(shape, seed: nil)
    let verifier = bench.verifier()
    let report = verifier.check()
    #expect(report.errors.isEmpty && report.leaks == 0, "\(report)")
    for sector in sectors(bench) {
      let found = try #require(verifier.sector(sector))
      #expect(SectorPattern.change(in: found, sector: sector) == bench.model.initial(sector))
    }
    #expect(bench.snapshotProblems(verifier).isEmpty)
    let l1 = Int(bench.bytes.be64(40))
    #expect((0..<Int(bench.bytes.be32(36))).allSatisfy { bench.bytes.be64(l1 + $0 * 8) == 0 })
  }

  @Test("A power cut leaves each sector as it was or as the backing file has it", arguments: shapes)
  func powerCuts(shape: ImageShape) throws {
    let seed = testSeed("emptying power cut")
    let bench = try empty(shape, seed: seed)
    let allowed = changes(bench)
    let crashes = CrashEnumerator(
      originals: bench.originals, events: bench.recording.events, seed: seed)
    let zeros = IOBuffer(count: 512)
    var failure: String?
    crashes.visit(perCut: 3) { state in
      let verifier = bench.verifier(state.files)
      // With lazy refcounts the next open counts anew.
      if !shape.isLazy, let error = verifier.check().errors.first {
        failure = "\(state.description): \(error)"
      }
      for (sector, own, below) in allowed where failure == nil {
        let found = verifier.sector(sector) ?? UnsafeRawPointer(zeros.base)
        let change = SectorPattern.change(in: found, sector: sector)
        if change == nil || change != own && change != below {
          failure = "\(state.description): sector \(sector) holds \(String(describing: change))"
        }
      }
      failure = failure ?? bench.snapshotProblems(verifier).first
      return failure == nil
    }
    #expect(failure == nil, "seed \(seed): \(failure ?? "")")
    #expect(crashes.count > 4)
  }

  @Test("Requests go on afterwards as in a new image")
  func requestsGoOn() throws {
    let bench = Bench(Self.shapes[0].builder, schedule: nil)
    try bench.host.run {
      let image = try await bench.open()
      let driver = MiniWorker(target: image, files: bench.files, worker: 0)
      for round in 0..<3 {
        #expect(await bench.write(8..<24, by: driver) == nil)
        try await image.makeEmpty()
        let buffer = IOBuffer(count: 512)
        let read = BlockRequest(
          .read, offset: GuestOffset(8 * 512), length: 512, data: buffer.data)
        #expect(await driver.perform(read, slot: 0, plans: round % 2 == 0) == nil)
        #expect(SectorPattern.change(in: buffer.base, sector: 8) == bench.model.initial(8))
      }
      try await image.close()
    }
    let report = bench.verifier().check()
    #expect(report.errors.isEmpty && report.leaks == 0, "\(report)")
  }
}
