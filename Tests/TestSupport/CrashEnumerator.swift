import TestTools

/// Builds what a disk may hold after the power fails, from the log of a ``RecordingFile``.
///
/// What had completed before the last completed barrier of its file began is there. Of everything
/// later, any part may be: none, all, each prefix, seeded subsets; and of one of those writes, any
/// of its 512-byte sectors, or of an extended L2 slice any of its 8-byte words.
///
/// A change that failed may be there as well, until a barrier that covers it has completed; from
/// then on the file has what the test did to it: see ``failedTookEffect``.
package final class CrashEnumerator {
  private let events: [HostEvent]
  private let durable: [ImageBytes]
  private let scratch: [ImageBytes]
  private var random: SeededGenerator
  private var isDurable: [Bool]
  /// For each file, the start of the newest barrier that has completed.
  private var barriers: [UInt64]
  /// Says of a write in the image, at an offset and of bytes, whether it may be torn inside
  /// sectors.
  package var tearsWords: (HostEvent) -> Bool = { _ in false }
  /// Changes that failed took effect nevertheless; else they did nothing.
  package var failedTookEffect = false
  /// States built so far.
  package private(set) var count = 0

  /// The same for one file.
  package convenience init(original: ImageBytes, events: [HostEvent], seed: UInt64) {
    self.init(originals: [original], events: events, seed: seed)
  }

  /// - Parameters:
  ///   - originals: The bytes of each file before the first event, by its number.
  ///   - events: The log of all files.
  ///   - seed: For the choice of what is lost.
  package init(originals: [ImageBytes], events: [HostEvent], seed: UInt64) {
    self.events = events
    durable = originals.map { $0.copy() }
    scratch = originals.map { $0.copy() }
    barriers = Array(repeating: 0, count: originals.count)
    random = SeededGenerator(seed: seed)
    isDurable = Array(repeating: false, count: events.count)
  }

  /// A state, and the time of the cut: what started before it may have had an effect.
  package struct State {
    package let files: [ImageBytes]
    /// The image.
    package var bytes: ImageBytes { files[0] }
    package let time: UInt64
    package let description: String
  }

  /// Visits states in order of time until `visit` returns false.
  ///
  /// Each cut point gives "none", "all" and `perCut` seeded states.
  package func visit(perCut: Int, _ visit: (State) -> Bool) {
    let cuts = events.flatMap { [$0.start, $0.end] }.filter { $0 != .max }.sorted()
    for cut in cuts {
      let advanced = advance(to: cut)
      let pending = events.indices.filter {
        events[$0].start <= cut && events[$0].isChange && !isDurable[$0]
      }
      if advanced || cut == cuts.first {
        guard emit([], tears: false, cut, "none", visit) else { return }
      }
      if pending.isEmpty { continue }
      guard emit(pending, tears: false, cut, "all", visit) else { return }
      for _ in 0..<perCut {
        guard emit(subset(of: pending), tears: random.chance(60), cut, "some", visit) else {
          return
        }
      }
    }
  }

  /// Moves what the newest completed barrier covers into the durable state.
  private func advance(to cut: UInt64) -> Bool {
    var newest = barriers
    for event in events where event.kind == .sync && event.end <= cut && !event.failed {
      newest[event.file] = max(newest[event.file], event.start)
    }
    if newest == barriers { return false }
    barriers = newest
    for index in events.indices
    where events[index].isChange && !isDurable[index]
      && events[index].end < barriers[events[index].file]
    {
      isDurable[index] = true
      if !events[index].failed || failedTookEffect {
        apply(events[index], to: durable[events[index].file])
      }
    }
    return true
  }

  private func subset(of pending: [Int]) -> [Int] {
    switch random.below(4) {
    case 0: return Array(pending.prefix(random.below(pending.count + 1)))
    case 1:
      // All but one: the shape of a single missing write.
      let dropped = pending[random.below(pending.count)]
      return pending.filter { $0 != dropped }
    case 2: return [pending[random.below(pending.count)]]
    default:
      let share = 20 + random.below(70)
      return pending.filter { _ in random.chance(share) }
    }
  }

  private func emit(
    _ chosen: [Int], tears: Bool, _ cut: UInt64, _ name: String, _ visit: (State) -> Bool
  ) -> Bool {
    for (target, source) in zip(scratch, durable) { target.assign(source) }
    let torn = tears && !chosen.isEmpty ? chosen[random.below(chosen.count)] : -1
    for index in chosen {
      if index == torn {
        applyTorn(events[index])
      } else {
        apply(events[index], to: scratch[events[index].file])
      }
    }
    count += 1
    let list = chosen.map { describe(events[$0]) + ($0 == torn ? " torn" : "") }
    return visit(
      State(
        files: scratch, time: cut + 1,
        description: "cut at \(cut), \(name): \(list.joined(separator: ", "))"))
  }

  private func describe(_ event: HostEvent) -> String {
    "\(event.kind.rawValue) \(event.file):\(event.offset)+\(event.length)@\(event.start)"
  }

  private func apply(_ event: HostEvent, to bytes: ImageBytes) {
    switch event.kind {
    case .write: bytes.put(event.data, Int(event.offset))
    case .zero: bytes.fill(0, count: Int(event.length), at: Int(event.offset))
    case .punch: punch(event, Int(event.offset), Int(event.length), bytes)
    case .setLength:
      // A cut may get lost as any other change; growth shortens nothing that came before.
      if event.isCut || Int(event.offset) > bytes.length { bytes.setLength(Int(event.offset)) }
    case .sync: break
    }
  }

  /// The contents of a punched range of the image are undefined; a data file is a regular file.
  private func punch(_ event: HostEvent, _ offset: Int, _ length: Int, _ bytes: ImageBytes) {
    let count = min(length, bytes.length - offset)
    if count > 0 { bytes.fill(event.file == 0 ? 0xdd : 0, count: count, at: offset) }
  }

  /// Applies some of the sectors of a write, or some words of them.
  private func applyTorn(_ event: HostEvent) {
    let end = event.offset + event.length
    let isPrefix = random.chance(50)
    let tearsInside = event.kind == .write && tearsWords(event)
    let kept = event.offset + UInt64(random.below(Int(event.length) + 1))
    // Sectors are those of the disk: a write may begin and end inside one.
    var start = event.offset
    while start < end {
      let next = min((start | 511) + 1, end)
      if tearsInside && random.chance(50) {
        tearInside(event, start..<next)
      } else if isPrefix ? next <= kept : random.chance(50) {
        apply(event, start..<next)
      }
      start = next
    }
  }

  /// Applies some of the 8-byte words of one sector.
  private func tearInside(_ event: HostEvent, _ range: Range<UInt64>) {
    let share = [50, 10, 90][random.below(3)]
    for word in stride(from: range.lowerBound, to: range.upperBound, by: 8)
    where random.chance(share) {
      apply(event, word..<(word + 8))
    }
  }

  private func apply(_ event: HostEvent, _ range: Range<UInt64>) {
    let target = scratch[event.file]
    let (offset, count) = (Int(range.lowerBound), range.count)
    switch event.kind {
    case .write:
      let first = offset - Int(event.offset)
      event.data[first..<(first + count)].withUnsafeBytes { source in
        if let start = source.baseAddress { target.write(start, count: count, at: offset) }
      }
    case .zero: target.fill(0, count: count, at: offset)
    case .punch: punch(event, offset, count, target)
    case .setLength, .sync: break
    }
  }
}
