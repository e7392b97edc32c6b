import BlockCore
package import DiskImages
package import JSON
import QCOW2Engine
import QCOW2Format
import QCOW2Tools

/// Gives back what a session that died has left reserved in an image, while guests use it: what
/// `check -r leaks` does with one that is not attached.
///
/// A look reads all metadata once, slower than the host can (``LeakPace``), and keeps no request waiting:
/// see ``QCOW2Engine/Image/beginLeakLook()``. Looks are repeated where a table moved under one. Refcounts
/// that are too low are corruption: they are reported and left alone, and so is everything in an
/// image where references may be hidden. A cancellation leaves the rest leaked.
package struct LeakReturnJob: DiskJob {
  package static let name = "return-leaks"
  /// The most looks, and how long it takes until the second one, in milliseconds; twice as long each time.
  private static let (mostLooks, firstPause) = (8, 50)
  /// The most clusters that are given back between two pauses.
  private static let batch = 256

  package var changesImage: Bool { true }
  /// How fast.
  private let pace: LeakPace

  /// The job.
  package init(_ pace: LeakPace = LeakPace()) { self.pace = pace }

  package init(_ arguments: inout JobArguments) throws(JobError) { self.init() }

  package var arguments: JSONValue { .object([]) }

  package func run(
    on disk: any OpenDisk, _ context: JobContext<NoValue>
  ) async throws(JobError) -> LeakReturnResult {
    guard let image = disk as? DiskImage else { throw .format(needed: .qcow2) }
    return try await run(
      on: image.engine,
      { () throws(JobError) in
        do throws(ToolError) { return try image.imageBytes() } catch { throw .file(error) }
      }, context)
  }

  /// The same on an engine.
  ///
  /// - Parameters:
  ///   - engine: Open for writing.
  ///   - open: Gives the bytes of its host file, as they are, from then on.
  ///   - context: Counts clusters that were given back.
  /// - Returns: What became of leaks.
  /// - Throws: ``JobError``; what was not given back until then stays leaked.
  func run(
    on engine: Image, _ open: () throws(JobError) -> any ImageBytes,
    _ context: JobContext<NoValue>
  ) async throws(JobError) -> LeakReturnResult {
    var result = LeakReturnResult()
    var doubtful: Set<HostCluster>?
    engine.note(.looking)
    do throws(JobError) {
      for number in 0..<Self.mostLooks where !result.isComplete {
        if number > 0 { try await rest(Self.firstPause << (number - 1), context) }
        try await look(engine, open, context, &doubtful, &result)
      }
    } catch {
      engine.note(.left)
      throw error
    }
    report(result, engine)
    engine.note(result.isComplete ? .done : .left)
    return result
  }

  private func rest(
    _ milliseconds: Int, _ context: JobContext<NoValue>
  ) async throws(JobError) {
    var left = milliseconds
    while left > 0 {
      try context.cancellation.check()
      await pauseJob(milliseconds: min(left, 50))
      left -= 50
    }
  }

  /// Tells the administrator of what is left alone.
  private func report(_ result: LeakReturnResult, _ engine: Image) {
    if result.tooLow > 0 {
      engine.reportDamage(
        "\(result.tooLow) host clusters have a refcount that is lower than the number of references to them"
      )
    } else if let obstacle = result.obstacle {
      engine.reportDamage(
        "\(obstacle): leaked clusters are not given back, since something that cannot be read may need them"
      )
    }
  }

  // MARK: A look

  private func look(
    _ engine: Image, _ open: () throws(JobError) -> any ImageBytes,
    _ context: JobContext<NoValue>, _ doubtful: inout Set<HostCluster>?,
    _ result: inout LeakReturnResult
  ) async throws(JobError) {
    try context.cancellation.check()
    do throws(ImageError) { try await engine.beginLeakLook() } catch { throw .image(error) }
    defer { engine.endLeakLook() }
    let scan = try scan(PacedBytes(try open(), pace, context.cancellation), engine, context)
    result.looks += 1
    result.obstacle = scan.obstacle
    guard scan.obstacle == nil else { return }
    let high = scan.leaked.map(LeakedCluster.init)
    let low = scan.tooLow.map(LeakedCluster.init)
    guard let leaks = await engine.judgeLeaks(high, isTable: scan.isTable),
      let tooLow = await engine.judgeLeaks(low, isTable: scan.isTable)
    else { return }
    result.tooLow = UInt64(tooLow.count)
    engine.note(.returning)
    let done = try await giveBack(leaks, engine, context, &result)
    // A cluster that had too high a refcount in each look, and was changed in each, is looked at again.
    let changing = scan.changing.union(high.map(\.cluster)).subtracting(done)
    doubtful = (doubtful.map(changing.intersection) ?? changing).filter {
      engine.standing(of: $0) == .changed
    }
    result.isComplete = !scan.isCutShort && doubtful?.isEmpty == true
  }

  private func scan(
    _ bytes: PacedBytes, _ engine: Image, _ context: JobContext<NoValue>
  ) throws(JobError) -> LeakScan {
    do throws(ToolError) {
      return try LeakScan(
        bytes, behind: Image.mostLeftBehind,
        standing: { LeakScan.Standing(engine.standing(of: $0)) },
        isCancelled: { context.cancellation.isCancelled })
    } catch {
      if case .cancelled = error { throw .cancelled }
      throw .file(error)
    }
  }

  /// Those that nothing refers to first: they are the many.
  ///
  /// - Returns: All that were given back: others have changed meanwhile.
  private func giveBack(
    _ leaks: [LeakedCluster], _ engine: Image, _ context: JobContext<NoValue>,
    _ result: inout LeakReturnResult
  ) async throws(JobError) -> [HostCluster] {
    var all: [LeakedCluster] = []
    var unused = leaks.filter { $0.references == 0 }[...]
    let shared = leaks.filter { $0.references > 0 }
    context.progress.begin(UInt64(leaks.count), .clusters)
    do throws(ImageError) {
      while !unused.isEmpty {
        if context.cancellation.isCancelled { break }
        let start = MonotonicClock.nanoseconds()
        let batch = unused.prefix(Self.batch)
        unused = unused.dropFirst(Self.batch)
        let done = try await engine.returnLeaks(Array(batch))
        all += done
        result.returned += UInt64(done.count)
        context.progress.advance(by: UInt64(batch.count))
        await pace.rest(after: MonotonicClock.nanoseconds() &- start)
      }
      if !shared.isEmpty, !context.cancellation.isCancelled {
        let done = try await engine.returnSharedLeaks(shared) { [pace] in
          await pace.rest(after: 100_000)
        }
        all += done
        result.lowered += UInt64(done.count)
        context.progress.advance(by: UInt64(shared.count))
      }
    } catch { throw .image(error) }
    try context.cancellation.check()
    return all.map(\.cluster)
  }
}

extension LeakScan.Standing {
  fileprivate init(_ standing: LeakStanding) {
    switch standing {
    case .constant: self = .constant
    case .changed: self = .changed
    case .past: self = .past
    }
  }
}

extension LeakedCluster {
  fileprivate init(_ suspect: LeakScan.Suspect) {
    self.init(
      cluster: suspect.cluster, refcount: suspect.refcount, references: suspect.references)
  }
}

/// What became of leaks.
package struct LeakReturnResult: JobValue {
  /// Clusters that are free now.
  package var returned: UInt64 = 0
  /// Clusters that are in use and had a refcount that was too high.
  package var lowered: UInt64 = 0
  /// Clusters whose refcount is too low.
  package var tooLow: UInt64 = 0
  /// How often all metadata was read.
  package var looks = 0
  /// All was seen, and all that was leaked has been given back.
  package var isComplete = false
  /// Why references may be hidden, if that was found in the last look.
  package var obstacle: String?

  /// None.
  package init() {}

  package var json: JSONValue {
    .object([
      .init("returned", .number(returned)), .init("lowered", .number(lowered)),
      .init("too_low", .number(tooLow)), .init("looks", .count(looks)),
      .init("complete", .bool(isComplete)),
      .init("obstacle", obstacle.map { .string($0) } ?? .null),
    ])
  }

  package init?(json: JSONValue) {
    guard let returned = json["returned"]?.unsigned, let lowered = json["lowered"]?.unsigned,
      let tooLow = json["too_low"]?.unsigned, let looks = json["looks"]?.integer,
      let isComplete = json["complete"]?.bool
    else { return nil }
    (self.returned, self.lowered, self.tooLow) = (returned, lowered, tooLow)
    (self.looks, self.isComplete) = (Int(looks), isComplete)
    obstacle = json["obstacle"]?.string
  }
}
