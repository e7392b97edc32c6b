import QCOW2Engine

/// Decides which events become lines of the log, so that the first of a kind is told at once and any
/// number of repeats takes few lines.
///
/// Repeats are told when their number has doubled, a second after the last line at the earliest, or when
/// a minute has passed.
struct EventLog {
  enum Level { case error, warning, info }

  struct Line: Equatable {
    let level: Level
    let text: String
  }

  /// What has been told of one kind.
  private struct Told {
    var count: UInt64 = 0
    var time: Double = 0
  }

  let device: DeviceName
  /// Requests that lack space wait for it.
  let holdsRequests: Bool
  private var told = Array(repeating: Told(), count: ImageEvent.Kind.allCases.count)
  private var toldEpisodes: UInt64 = 0
  private var hasToldLack = false

  /// The shortest time between two lines that say that space is lacking, in seconds.
  private static let spaceInterval = 10.0
  private static let longInterval = 60.0

  init(device: DeviceName, holdsRequests: Bool) {
    self.device = device
    self.holdsRequests = holdsRequests
  }

  /// The lines that are due.
  ///
  /// - Parameters:
  ///   - events: All until now.
  ///   - now: In seconds of a clock that only goes forward.
  /// - Returns: The lines, in order, and whether something is left to be told later.
  mutating func lines(
    for events: ImageEvents.Summary, now: Double
  ) -> (lines: [Line], isBehind: Bool) {
    var lines: [Line] = []
    var isBehind = false
    for kind in ImageEvent.Kind.allCases {
      switch kind {
      // What happens at the opening is told by the opening.
      case .bitmapDropped, .refcountsRebuilt, .spaceFound: continue
      case .spaceLacking: isBehind = tellSpace(events, now, &lines) || isBehind
      case .readFailed, .writeFailed, .syncFailed, .damaged:
        isBehind = tell(kind, events[kind], now, &lines) || isBehind
      }
    }
    return (lines, isBehind)
  }

  private mutating func tell(
    _ kind: ImageEvent.Kind, _ record: ImageEvents.Record, _ now: Double, _ lines: inout [Line]
  ) -> Bool {
    guard record.count > 0, let first = record.first, let last = record.last else { return false }
    let before = told[kind.rawValue]
    if before.count == 0 {
      lines.append(Line(level: .error, text: full(first)))
      told[kind.rawValue] = Told(count: 1, time: now)
      return record.count > 1
    }
    let more = record.count - before.count
    guard more > 0 else { return false }
    let passed = now - before.time
    guard record.count >= before.count * 2 && passed >= 1 || passed >= Self.longInterval else {
      return true
    }
    lines.append(
      Line(
        level: .error, text: "\(device.path): \(more) more (\(kind.name)), the last: \(last.text)"))
    told[kind.rawValue] = Told(count: record.count, time: now)
    return false
  }

  /// The beginning and the end of each lack of space, the first at once, and once a minute that it
  /// lasts.
  private mutating func tellSpace(
    _ events: ImageEvents.Summary, _ now: Double, _ lines: inout [Line]
  ) -> Bool {
    let record = events[.spaceLacking]
    guard let last = record.last else { return false }
    let place = ImageEvent.Kind.spaceLacking.rawValue
    let isFirst = told[place].count == 0
    if events.spaceEpisodes > toldEpisodes, !hasToldLack {
      guard isFirst || now - told[place].time >= Self.spaceInterval else { return true }
      lines.append(Line(level: .warning, text: full(last)))
      hasToldLack = true
      told[place] = Told(count: record.count, time: now)
    } else if hasToldLack, events.lacksSpace, record.count > told[place].count {
      guard now - told[place].time >= Self.longInterval else { return true }
      lines.append(Line(level: .warning, text: full(last)))
      told[place] = Told(count: record.count, time: now)
    }
    toldEpisodes = events.spaceEpisodes
    if hasToldLack, !events.lacksSpace, let end = events[.spaceFound].last {
      lines.append(Line(level: .info, text: full(end)))
      hasToldLack = false
    }
    return false
  }

  /// What is wrong with the device, and what to do; nil if nothing is wrong.
  func trouble(of events: ImageEvents.Summary) -> String? {
    events.trouble.map { $0.text + $0.wayOut(device, holdsRequests: holdsRequests) }
  }

  /// All that there is to say of an event.
  private func full(_ event: ImageEvent) -> String {
    "\(device.path): \(event.text)\(event.wayOut(device, holdsRequests: holdsRequests))"
  }
}
