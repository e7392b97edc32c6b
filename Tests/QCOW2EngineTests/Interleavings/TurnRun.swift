import BlockCore
import QCOW2Format
import TestSupport

@testable import QCOW2Engine

#if DEBUG
  /// Runs a scenario by one plan after the other, each on a fresh copy of the image.
  final class TurnRun: @unchecked Sendable {  // why: one thread at a time
    private let scenario: TurnScenario
    private let threads: TwoThreads
    private let template: ImageBytes
    private let file: TurnFile
    private var options = ImageOptions()
    private var problems: [String] = []
    private var snapshotIsFrom: (thread: Int, done: Int)?

    init(_ scenario: TurnScenario, on threads: TwoThreads) {
      self.scenario = scenario
      self.threads = threads
      var builder = scenario.contents.builder
      let perCluster = (1 << builder.clusterBits) / 512
      builder.fill = { cluster, bytes in
        for index in 0..<perCluster {
          SectorPattern.fill(
            bytes + index * 512, change: TurnScenario.first, sector: cluster * perCluster + index)
        }
      }
      template = builder.build(capacity: 1 << 26)
      file = TurnFile(template.copy())
      options.workers = 2
      options.slotsPerWorker = 2
      options.dirtyAgeMilliseconds = 0
      if let bytes = scenario.contents.cacheBytes { options.cacheBytes = bytes }
    }

    /// Runs the scenario by a plan.
    ///
    /// - Returns: The points that were passed after the last stop, and what is wrong with what came of it.
    func run(_ plan: TwoThreads.Plan) async -> (points: Int, problem: String?) {
      file.begin(from: template)
      problems = []
      snapshotIsFrom = nil
      let image: Image
      do { image = try await Image.open(file, options: options) } catch {
        return (0, "the image does not open: \(error)")
      }
      if scenario.contents.isWarm { await warm(image) }
      let hasEnded = threads.run(plan, (0..<2).map { thread in { await self.work(thread, image) } })
      let points = threads.points
      guard hasEnded else { return (points, "both threads wait for each other for ever") }
      _ = threads.run(TwoThreads.Plan(), [{ await self.close(image) }])
      return (points, problems.first ?? problemAtEnd())
    }

    /// Reads all that is mapped.
    private func warm(_ image: Image) async {
      let driver = MiniWorker(target: image, file: file, worker: 0)
      let buffer = IOBuffer(count: 512)
      for cluster in scenario.contents.builder.mappings.keys {
        let offset = GuestOffset(UInt64(cluster) << UInt64(scenario.contents.builder.clusterBits))
        _ = await driver.perform(
          BlockRequest(.read, offset: offset, length: 512, data: buffer.data), slot: 0)
      }
      withExtendedLifetime(buffer) {}
    }

    private func close(_ image: Image) async {
      do { try await image.close() } catch { problems.append("close: \(error)") }
    }

    // MARK: The work of a thread

    private func work(_ thread: Int, _ image: Image) async {
      let driver = MiniWorker(target: image, file: file, worker: thread)
      for (index, step) in scenario.steps[thread].enumerated() {
        do {
          if let errno = try await carryOut(step, index, thread, image, driver) {
            problems.append("\(step): errno \(errno.code)")
          }
        } catch { problems.append("\(step): \(error)") }
      }
    }

    private func carryOut(
      _ step: TurnScenario.Step, _ index: Int, _ thread: Int, _ image: Image, _ driver: MiniWorker
    ) async throws -> Errno? {
      switch step {
      case .write(let sectors):
        let buffer = IOBuffer(count: sectors.count * 512)
        for (place, sector) in sectors.enumerated() {
          SectorPattern.fill(
            buffer.base + place * 512, change: TurnScenario.change(thread, index), sector: sector)
        }
        defer { withExtendedLifetime(buffer) {} }
        return await driver.perform(Self.request(.write, sectors, buffer.data), slot: 0)
      case .read(let sectors): return await read(sectors, index, thread, driver)
      case .discard(let sectors):
        return await driver.perform(Self.request(.discard, sectors), slot: 0)
      case .zero(let sectors):
        return await driver.perform(Self.request(.writeZeroes, sectors), slot: 0)
      case .flush:
        let errno = await driver.perform(BlockRequest(.flush), slot: 0)
        noteDurable(index, thread)
        return errno
      case .maintain: await image.maintain()
      case .quiesce: try await image.quiesce()
      case .grow: try await image.resize(to: image.size + image.geometry.clusterSize)
      case .takeSnapshot:
        snapshotIsFrom = (thread, index)
        _ = try await image.createSnapshot(named: "new") { _, _ in true }
      case .deleteSnapshot: _ = try await image.deleteSnapshot(.id("1")) { _, _ in true }
      }
      return nil
    }

    private static func request(
      _ operation: BlockOperation, _ sectors: Range<Int>, _ data: DataBuffer = .none
    ) -> BlockRequest {
      BlockRequest(
        operation, offset: GuestOffset(UInt64(sectors.lowerBound) * 512),
        length: UInt64(sectors.count) * 512, data: data)
    }

    private func read(
      _ sectors: Range<Int>, _ index: Int, _ thread: Int, _ driver: MiniWorker
    ) async -> Errno? {
      let buffer = IOBuffer(count: sectors.count * 512)
      buffer.base.initializeMemory(as: UInt8.self, repeating: 0xa5, count: buffer.count)
      let errno = await driver.perform(Self.request(.read, sectors, buffer.data), slot: 0)
      for (place, sector) in sectors.enumerated() where errno == nil {
        expect(
          buffer.base + place * 512, sector, scenario.allowed(sector, of: thread, after: index),
          "read")
      }
      withExtendedLifetime(buffer) {}
      return errno
    }

    // MARK: What may come of it

    private func expect(
      _ bytes: UnsafeRawPointer?, _ sector: Int, _ allowed: Set<UInt32>, _ place: String
    ) {
      let found = bytes.map { SectorPattern.change(in: $0, sector: sector) } ?? 0
      if let found, allowed.contains(found) { return }
      problems.append(
        "\(place), sector \(sector): \(found.map { "change \($0)" } ?? "no sector of ours"), expected one of \(allowed.sorted())"
      )
    }

    /// After a flush: what a power cut would leave has the steps before it.
    private func noteDurable(_ index: Int, _ thread: Int) {
      let bytes = file.durable
      let isDirty = bytes.be64(72) & 1 != 0
      let verifier = ImageVerifier(bytes)
      verifier.allowsStaleBitmaps = true
      for sector in scenario.sectors {
        expect(
          verifier.sector(sector), sector, scenario.allowed(sector, of: thread, after: index),
          "after a flush")
      }
      if !isDirty, let error = verifier.check().errors.first {
        problems.append("after a flush: \(error)")
      }
    }

    private func problemAtEnd() -> String? {
      let verifier = ImageVerifier(file.bytes)
      for sector in scenario.sectors {
        expect(verifier.sector(sector), sector, scenario.allowedAtEnd(sector), "at the end")
      }
      if let from = snapshotIsFrom, !scenario.contents.builder.hasSnapshot {
        for sector in scenario.sectors {
          expect(
            verifier.snapshotSector(sector), sector,
            scenario.allowed(sector, of: from.thread, after: from.done), "in the snapshot")
        }
      }
      let report = verifier.check()
      if let error = report.errors.first { problems.append(error) }
      if report.leaks > 0 { problems.append("\(report.leaks) leaked clusters") }
      return problems.first
    }
  }
#endif
