/// Builds what a disk may hold after the power fails, from the log of a ``RecordingFile``.
///
/// What had completed before the last completed barrier began is there. Of everything later, any
/// part may be: none, all, each prefix, seeded subsets; and of one or more of those writes, any of
/// their 512-byte sectors.
package final class CrashEnumerator {
  private let events: [HostEvent]
  private let durable: ImageBytes
  private let scratch: ImageBytes
  private var random: SeededGenerator
  private var isDurable: [Bool]
  /// The start of the newest barrier that has completed.
  private var barrier: UInt64 = 0
  /// States built so far.
  package private(set) var count = 0

  package init(original: ImageBytes, events: [HostEvent], seed: UInt64) {
    self.events = events
    durable = original.copy()
    scratch = original.copy()
    random = SeededGenerator(seed: seed)
    isDurable = Array(repeating: false, count: events.count)
  }

  /// A state, and the time of the cut: what started before it may have had an effect.
  package struct State {
    package let bytes: ImageBytes
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
        events[$0].start <= cut && events[$0].isChange && !isDurable[$0] && !events[$0].failed
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
    var newest = barrier
    for event in events where event.kind == .sync && event.end <= cut && !event.failed {
      newest = max(newest, event.start)
    }
    if newest == barrier { return false }
    barrier = newest
    for index in events.indices
    where events[index].isChange && !isDurable[index] && events[index].end < barrier {
      isDurable[index] = true
      if !events[index].failed { apply(events[index], to: durable) }
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
    scratch.assign(durable)
    let torn = tears && !chosen.isEmpty ? chosen[random.below(chosen.count)] : -1
    for index in chosen {
      if index == torn {
        applyTorn(events[index])
      } else {
        apply(events[index], to: scratch)
      }
    }
    count += 1
    let list = chosen.map { describe(events[$0]) + ($0 == torn ? " torn" : "") }
    return visit(
      State(
        bytes: scratch, time: cut + 1,
        description: "cut at \(cut), \(name): \(list.joined(separator: ", "))"))
  }

  private func describe(_ event: HostEvent) -> String {
    "\(event.kind.rawValue) \(event.offset)+\(event.length)@\(event.start)"
  }

  private func apply(_ event: HostEvent, to bytes: ImageBytes) {
    switch event.kind {
    case .write: bytes.put(event.data, Int(event.offset))
    case .zero: bytes.fill(0, count: Int(event.length), at: Int(event.offset))
    case .punch: punch(Int(event.offset), Int(event.length), bytes)
    case .setLength: if Int(event.offset) > bytes.length { bytes.setLength(Int(event.offset)) }
    case .sync: break
    }
  }

  /// The contents of a punched range are undefined.
  private func punch(_ offset: Int, _ length: Int, _ bytes: ImageBytes) {
    let count = min(length, bytes.length - offset)
    if count > 0 { bytes.fill(0xdd, count: count, at: offset) }
  }

  /// Applies some of the sectors of a write.
  private func applyTorn(_ event: HostEvent) {
    let sectors = Int(event.length) / 512
    let isPrefix = random.chance(50)
    let kept = random.below(sectors + 1)
    for sector in 0..<sectors where isPrefix ? sector < kept : random.chance(50) {
      let offset = Int(event.offset) + sector * 512
      switch event.kind {
      case .write:
        bytes(of: event, sector).withUnsafeBytes { source in
          if let start = source.baseAddress { scratch.write(start, count: 512, at: offset) }
        }
      case .zero: scratch.fill(0, count: 512, at: offset)
      case .punch: punch(offset, 512, scratch)
      case .setLength, .sync: break
      }
    }
  }

  private func bytes(of event: HostEvent, _ sector: Int) -> ArraySlice<UInt8> {
    event.data[(sector * 512)..<((sector + 1) * 512)]
  }
}
