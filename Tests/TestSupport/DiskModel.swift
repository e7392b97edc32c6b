/// What the guest may see: for each 512-byte sector, the changes it may hold now or after a crash.
///
/// Each write, discard or zeroing is a change with a start and an end in logical time. A change is
/// superseded by one that started after it had ended; of concurrent ones either may win. After a
/// crash only changes that were made durable by an acknowledged flush (or FUA) supersede.
package final class DiskModel: @unchecked Sendable {  // why: one thread per simulation, or a lock
  private struct Change {
    let isZero: Bool
    let start: UInt64
    var end: UInt64 = .max
    var failed = false
    var isDurable = false
    /// Afterwards the sectors may hold anything.
    var isWild = false
  }

  private struct Flush {
    let start: UInt64
    var end: UInt64 = .max
    var failed = false
  }

  /// The size of the disk in bytes.
  package let size: Int
  package let clock: LogicalClock
  /// Change 0 is the zeros of an empty disk.
  private var changes = [Change(isZero: true, start: 0, end: 0, isDurable: true)]
  private var flushes: [Flush] = []
  private var history: [Int: [UInt32]] = [:]
  /// What a sector holds that was never changed.
  package var initial: (Int) -> UInt32 = { _ in 0 }
  /// The sector that a backing file ends in, and how many of its bytes are inside.
  package var cutSector: (sector: Int, count: Int)?

  package init(size: Int, clock: LogicalClock) {
    self.size = size
    self.clock = clock
  }

  /// Sectors that were ever changed.
  package var touched: [Int] { history.keys.sorted() }

  private func numbers(of sector: Int) -> [UInt32] { history[sector] ?? [initial(sector)] }

  /// Notes what sectors held from the start.
  package func setInitial(_ sectors: Range<Int>, _ change: UInt32) {
    for sector in sectors { history[sector] = [change] }
  }

  /// Notes what the image held from the start, and returns the change for the pattern.
  package func prefill(_ sectors: Range<Int>) -> UInt32 {
    changes.append(Change(isZero: false, start: 0, end: 0, isDurable: true))
    let number = UInt32(changes.count - 1)
    for sector in sectors { history[sector] = [number] }
    return number
  }

  /// A change begins; its number, which is also the pattern's, is returned.
  package func begin(_ sectors: Range<Int>, isZero: Bool, isWild: Bool = false) -> UInt32 {
    changes.append(Change(isZero: isZero, start: clock.tick(), isWild: isWild))
    let number = UInt32(changes.count - 1)
    for sector in sectors { history[sector] = numbers(of: sector) + [number] }
    return number
  }

  /// A change ends; `durable` if it was a successful FUA request.
  package func end(_ number: UInt32, failed: Bool = false, durable: Bool = false) {
    changes[Int(number)].end = clock.tick()
    changes[Int(number)].failed = failed
    changes[Int(number)].isDurable = durable
  }

  /// When a change began and ended; the latter is the end of time while it goes on.
  package func times(of number: UInt32) -> (start: UInt64, end: UInt64) {
    (changes[Int(number)].start, changes[Int(number)].end)
  }

  package func beginFlush() -> Int {
    flushes.append(Flush(start: clock.tick()))
    return flushes.count - 1
  }

  package func endFlush(_ number: Int, failed: Bool) {
    flushes[number].end = clock.tick()
    flushes[number].failed = failed
  }

  /// Checks a sector that was read between two times; what is wrong with it, or nil.
  package func checkRead(
    _ bytes: UnsafeRawPointer, sector: Int, started: UInt64, ended: UInt64
  ) -> String? {
    check(bytes, sector, before: ended) { change in
      !change.failed && change.end < started ? change.start : nil
    }
  }

  /// Checks a sector found after a crash at time `crash`.
  package func checkCrash(
    _ bytes: UnsafeRawPointer, sector: Int, crash: UInt64, flushedBefore: UInt64
  ) -> String? {
    check(bytes, sector, before: crash) { change in
      guard !change.failed, change.end < flushedBefore || change.isDurable && change.end < crash
      else { return nil }
      return change.start
    }
  }

  /// When the last flush started that was acknowledged before `crash`.
  package func lastFlushStart(before crash: UInt64) -> UInt64 {
    var latest: UInt64 = 0
    for flush in flushes where !flush.failed && flush.end < crash {
      latest = max(latest, flush.start)
    }
    return latest
  }

  // `settled` gives the start of a change that supersedes all that ended before it.
  private func check(
    _ bytes: UnsafeRawPointer, _ sector: Int, before limit: UInt64,
    _ settled: (Change) -> UInt64?
  ) -> String? {
    let numbers = numbers(of: sector)
    let isWild = numbers.contains { changes[Int($0)].isWild }
    let pattern = SectorPattern.change(in: bytes, sector: sector) ?? cut(bytes, sector)
    guard let found = pattern ?? (isWild ? UInt32.max : nil) else {
      return "sector \(sector): not a value ever written there: \(SectorPattern.describe(bytes))"
    }
    var newestSettled: UInt64 = 0
    for number in numbers {
      if let start = settled(changes[Int(number)]) { newestSettled = max(newestSettled, start) }
    }
    for number in numbers {
      let change = changes[Int(number)]
      guard change.isWild || (change.isZero ? found == 0 : found == number) else { continue }
      if change.start < limit && change.end >= newestSettled { return nil }
    }
    return "sector \(sector): holds change \(found), not permitted; history "
      + numbers.map { describe($0) }.joined(separator: ", ")
  }

  /// The change of a sector that a backing file ends in.
  private func cut(_ bytes: UnsafeRawPointer, _ sector: Int) -> UInt32? {
    guard let cutSector, cutSector.sector == sector else { return nil }
    let number = initial(sector)
    return withUnsafeTemporaryAllocation(byteCount: 512, alignment: 16) { expected in
      guard let start = expected.baseAddress else { return nil }
      SectorPattern.fill(start, change: number, sector: sector)
      let count = 512 - cutSector.count
      (start + cutSector.count).initializeMemory(as: UInt8.self, repeating: 0, count: count)
      return expected.elementsEqual(UnsafeRawBufferPointer(start: bytes, count: 512))
        ? number : nil
    }
  }

  private func describe(_ number: UInt32) -> String {
    let change = changes[Int(number)]
    let end = change.end == .max ? "…" : String(change.end)
    let marks = (change.failed ? " failed" : "") + (change.isDurable ? " durable" : "")
    return "\(number)\(change.isZero ? "=0" : "") [\(change.start)–\(end)\(marks)]"
  }
}
