import BlockCore
import QCOW2Engine
import TestSupport
import TestTools
import Testing

/// Changes bitmaps beside a workload, and knows which writes each bitmap must have.
final class BitmapHistory: @unchecked Sendable {  // why: one thread per simulation
  struct Step {
    let change: String
    let name: String
    let source: String?
    let start: UInt64
    var end: UInt64 = .max
    var failed = false
  }

  private(set) var steps: [Step] = []
  private let clock: LogicalClock
  private var random: SeededGenerator

  init(_ clock: LogicalClock, seed: UInt64) {
    self.clock = clock
    random = SeededGenerator(seed: seed)
  }

  /// Makes one change; a failure is noted as a change that did nothing.
  @discardableResult
  func make(_ change: BitmapChange, on image: Image) async -> ImageError? {
    let (what, name, source) = Self.words(change)
    steps.append(Step(change: what, name: name, source: source, start: clock.tick()))
    let index = steps.count - 1
    do throws(ImageError) {
      try await image.changeBitmaps(change)
      steps[index].end = clock.tick()
      return nil
    } catch {
      steps[index].end = clock.tick()
      steps[index].failed = true
      return error
    }
  }

  private static func words(_ change: BitmapChange) -> (String, String, String?) {
    switch change {
    case .add(let name, _): ("add", name, nil)
    case .remove(let name): ("remove", name, nil)
    case .removeAll: ("remove all", "", nil)
    case .clear(let name): ("clear", name, nil)
    case .enable(let name): ("enable", name, nil)
    case .disable(let name): ("disable", name, nil)
    case .merge(let name, .own(let source)): ("merge", name, source)
    case .merge(let name, _): ("merge", name, nil)
    }
  }

  /// Any changes of three bitmaps; those that make no sense are refused.
  func run(_ count: Int, on image: Image) async {
    let names = ["a", "b", "c"]
    for _ in 0..<count {
      let name = names[random.below(3)]
      let change: BitmapChange =
        switch random.below(10) {
        case 0, 1, 2: .add(name, granularity: 512 << UInt64(random.below(5)))
        case 3: .remove(name)
        case 4, 5: .clear(name)
        case 6: .enable(name)
        case 7: .disable(name)
        default: .merge(into: name, from: .own(names[random.below(3)]))
        }
      await make(change, on: image)
      for _ in 0..<random.below(30) { await Task.yield() }
    }
  }

  /// When writes must show in a bitmap: they began after `from` and ended before `to`.
  struct Interval {
    let from: UInt64
    var to = UInt64.max
  }

  /// What bitmaps there must be at a time, with the writes they must have; nil for one that may be there or
  /// not, or that may have been cleared or not.
  func demands(at time: UInt64) -> [String: [Interval]?] {
    var found: [String: [Interval]?] = [:]
    for step in steps where step.start <= time && !step.failed {
      let isDone = step.end <= time
      let now = found[step.name] ?? nil
      switch step.change {
      case "add": found[step.name] = .some(isDone ? [Interval(from: step.end)] : nil)
      case "remove": if isDone { found[step.name] = nil } else { found[step.name] = .some(nil) }
      case "clear":
        let isOn = now.map { $0.contains { $0.to == .max } } ?? false
        found[step.name] = .some(isDone ? (isOn ? [Interval(from: step.end)] : []) : nil)
      case "enable":
        if isDone, var now, !now.contains(where: { $0.to == .max }) {
          now.append(Interval(from: step.end))
          found[step.name] = .some(now)
        }
      case "disable":
        if let now { found[step.name] = .some(now.map { Self.closed($0, step.start) }) }
      case "merge":
        let source = (found[step.source ?? ""] ?? nil) ?? []
        if isDone, let now {
          found[step.name] = .some(now + source.map { Self.closed($0, step.start) })
        }
      default: break
      }
    }
    return found
  }

  private static func closed(_ interval: Interval, _ time: UInt64) -> Interval {
    Interval(from: interval.from, to: min(interval.to, time))
  }

  /// What bitmaps of an image fail to say at a time; nil if nothing.
  func missing(_ verifier: ImageVerifier, _ model: DiskModel, at time: UInt64) -> String? {
    let bitmaps = verifier.bitmaps ?? []
    for (name, intervals) in demands(at: time) {
      guard let intervals else { continue }
      guard let bitmap = bitmaps.first(where: { $0.name == name }) else {
        return "bitmap \(name) is not there"
      }
      for sector in model.touched {
        guard let bytes = verifier.sector(sector),
          let change = SectorPattern.change(in: bytes, sector: sector)
        else { continue }
        let write = model.times(of: change)
        let isWanted =
          intervals.contains { $0.from < write.start && write.end < $0.to }
          || intervals.contains { $0.to == .max && $0.from < write.start }
        if isWanted, !verifier.isSet(bitmap, sector: sector) {
          return
            "bitmap \(name) misses sector \(sector), written from \(write.start) to \(write.end)"
        }
      }
    }
    return nil
  }
}
