import BlockCore
import QCOW2Engine
import TestSupport

/// What two threads do to one small image, and what may come of it.
struct TurnScenario {
  /// One step of a thread.
  enum Step: Hashable {
    /// Sectors of the disk.
    case write(Range<Int>)
    case read(Range<Int>)
    case discard(Range<Int>)
    case zero(Range<Int>)
    case flush
    case maintain
    /// Waits until all requests that are under way have ended.
    case quiesce
    /// The disk gets one cluster more.
    case grow
    case takeSnapshot
    /// Of the one that the image has at first.
    case deleteSnapshot

    /// The sectors that it changes.
    var changed: Range<Int> {
      switch self {
      case .write(let sectors), .discard(let sectors), .zero(let sectors): sectors
      case .read, .flush, .maintain, .quiesce, .grow, .takeSnapshot, .deleteSnapshot: 0..<0
      }
    }
  }

  /// What the image is like at first.
  struct Contents {
    var name: String
    var builder: ImageBuilder
    /// Of cache for L2 tables; nil for as much as is usual.
    var cacheBytes: Int?
    /// The tables are in memory before the threads begin.
    var isWarm = true
  }

  let contents: Contents
  /// The steps of each thread.
  let steps: [[Step]]

  var description: String { "\(contents.name): \(steps[0]) beside \(steps[1])" }

  /// The number that a thread's step writes as the change of its sectors.
  static func change(_ thread: Int, _ step: Int) -> UInt32 { UInt32(100 + thread * 100 + step) }

  /// The change of sectors that the builder has filled.
  static let first: UInt32 = 1

  /// The change that a sector has at first; 0 for zeros.
  func initial(_ sector: Int) -> UInt32 {
    switch contents.builder.mappings[(sector * 512) >> contents.builder.clusterBits] {
    case .data, .compressed: Self.first
    default: 0
    }
  }

  /// What a step leaves in a sector; nil if it does not change it.
  private func value(of sector: Int, after step: Int, of thread: Int) -> UInt32? {
    guard steps[thread][step].changed.contains(sector) else { return nil }
    if case .write = steps[thread][step] { return Self.change(thread, step) }
    return 0
  }

  private func values(_ sector: Int, _ thread: Int, _ range: Range<Int>) -> [UInt32] {
    range.compactMap { value(of: sector, after: $0, of: thread) }
  }

  /// What a thread may find in a sector after `done` of its steps, the other one being anywhere.
  func allowed(_ sector: Int, of thread: Int, after done: Int) -> Set<UInt32> {
    let own = values(sector, thread, 0..<done).last ?? initial(sector)
    return Set([own] + values(sector, 1 - thread, 0..<steps[1 - thread].count))
  }

  /// What a sector may hold when both have ended.
  func allowedAtEnd(_ sector: Int) -> Set<UInt32> {
    let last = (0..<2).compactMap { values(sector, $0, 0..<steps[$0].count).last }
    return last.isEmpty ? [initial(sector)] : Set(last)
  }

  /// Those of the disk.
  var sectors: Range<Int> { 0..<(contents.builder.size / 512) }
}
