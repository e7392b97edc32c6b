import BlockCore
import QCOW2Engine
import QCOW2Format
import Testing
import Uring

/// What became of a spoiled image.
enum Verdict {
  /// Not opened, with the error.
  case refused(ImageError)
  /// Opened; some requests may have failed.
  case served
}

/// Opens a spoiled image read-only and for writing, uses it, and holds the engine to its promises.
struct Trial {
  /// What is being tried, for messages.
  let name: String
  let makeFile: (_ readOnly: Bool) -> SparseFile
  /// Whether data that was not written must stay as it was.
  ///
  /// Not so where two guest clusters lie in one host cluster, or a cluster in use counts as free:
  /// no open can find that without a check.
  var keepsOtherData = true

  init(_ name: String, _ bytes: [UInt8], keepsOtherData: Bool = true) {
    self.name = name
    makeFile = { SparseFile(bytes, isReadOnly: $0) }
    self.keepsOtherData = keepsOtherData
  }

  init(_ name: String, makeFile: @escaping (_ readOnly: Bool) -> SparseFile) {
    self.name = name
    self.makeFile = makeFile
  }

  private var options: ImageOptions {
    var options = ImageOptions()
    options.slotsPerWorker = 2
    return options
  }

  /// Runs the trial; failures become test issues.
  ///
  /// - Returns: the verdicts of the read-only and of the writable open.
  @discardableResult
  func run() -> (reader: Verdict, writer: Verdict) {
    Watchdog.shared.begin(name)
    defer { Watchdog.shared.end() }
    return runBlocking { () async -> (Verdict, Verdict) in
      let (reader, answers) = await readOnly()
      return (reader, await writable(expecting: answers))
    }
  }

  private func readOnly() async -> (Verdict, Exercise.Answers) {
    let file = makeFile(true)
    var options = options
    options.readOnly = true
    do throws(ImageError) {
      let exercise = Exercise(image: try await Image.open(file, options: options))
      let answers = await exercise.readAll()
      try await exercise.image.close()
      #expect(file.changes == 0, "\(name): changed while read-only")
      return (.served, answers)
    } catch {
      #expect(file.changes == 0, "\(name): changed while refused")
      return (.refused(error), [:])
    }
  }

  private func writable(expecting answers: Exercise.Answers) async -> Verdict {
    let file = makeFile(false)
    do throws(ImageError) {
      let exercise = Exercise(image: try await Image.open(file, options: options))
      await use(exercise, answers)
      try? await exercise.image.close()
      return .served
    } catch {
      #expect(file.changes == 0, "\(name): changed while refused for writing")
      return .refused(error)
    }
  }

  private func use(_ exercise: Exercise, _ before: Exercise.Answers) async {
    compare(await exercise.readAll(), before, "after opening it for writing")
    let size = exercise.image.size
    let cluster = exercise.image.geometry.clusterSize
    let perTable = exercise.image.geometry.bytesPerL2Table
    // A part of the first cluster; the second; one of the second table; one never written before.
    let wanted: [Range<UInt64>] = [
      0..<512, cluster..<(2 * cluster), perTable..<(perTable + 512),
      (10 * cluster)..<(12 * cluster),
    ]
    var written: [Range<UInt64>] = []
    // What a failed request leaves behind is anything between the old and the new.
    var unknown: [Range<UInt64>] = []
    for range in wanted where range.upperBound <= size {
      let errno = await exercise.write(0xee, range)
      if errno == nil { written.append(range) } else { unknown.append(range) }
    }
    _ = await exercise.ask(.flush)
    compare(
      await exercise.readAll(), before, "after writing", written: written, byte: 0xee,
      unknown: unknown)
    let gone: [Range<UInt64>] = [
      (2 * cluster)..<(3 * cluster), (perTable + cluster)..<(perTable + 3 * cluster),
    ]
    for range in gone where range.upperBound <= size {
      _ = await exercise.ask(.discard, range)
      _ = await exercise.ask(.writeZeroes, range, keepsAllocation: true)
    }
    _ = await exercise.ask(.flush)
    await exercise.image.maintain()
    _ = await exercise.ask(.flush)
    compare(
      await exercise.readAll(), before, "after discarding", written: written, byte: 0xee,
      unknown: unknown + gone)
  }

  /// Compares what is read now with what a reader got before.
  ///
  /// What was written since must be `byte` throughout, and what is in `unknown` may be anything.
  /// All ranges are whole sectors.
  private func compare(
    _ now: Exercise.Answers, _ before: Exercise.Answers, _ when: String,
    written: [Range<UInt64>] = [], byte: UInt8 = 0, unknown: [Range<UInt64>] = []
  ) {
    guard keepsOtherData else { return }
    for (place, answer) in now {
      guard case .success(let bytes) = answer, case .success(let old)? = before[place] else {
        continue
      }
      if bytes == old { continue }
      for start in stride(from: 0, to: bytes.count, by: 512) {
        let sector = bytes[start..<(start + 512)]
        let offset = place + UInt64(start)
        if unknown.contains(where: { $0.contains(offset) }) { continue }
        let isRight =
          written.contains { $0.contains(offset) }
          ? sector.allSatisfy { $0 == byte } : sector == old[start..<(start + 512)]
        if !isRight {
          Issue.record("\(name): wrong data at guest offset \(place + UInt64(start)) \(when)")
          return
        }
      }
    }
  }
}
