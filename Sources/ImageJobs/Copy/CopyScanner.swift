import BlockCore
import QCOW2Engine
import Synchronization

/// A range of the target, and what becomes of it.
struct CopyRange: Equatable, Sendable {
  var kind: CopyKind
  /// The first byte, in the target.
  var offset: UInt64
  /// In bytes, at least 1.
  var length: UInt64
}

/// Divides a copy into ranges and hands them out, from the first to the last.
///
/// Asks the sources for what they have, one question at a time. Any task on any thread may call ``next()``.
/// A call that asks the sources also finds the next few ranges, so most calls need not wait. Ranges begin and
/// end on multiples of the target's unit, but for the last one. A unit that is only partly data is data as a
/// whole.
final class CopyScanner: @unchecked Sendable {  // why: guarded by `mutex` or `readyLock`
  /// The most bytes of a range that is not read.
  private static let emptyLimit: UInt64 = 1 << 30
  /// The ranges of one look ahead.
  private static let ahead = 16

  private let sources: [CopySource]
  /// Where each source begins in the target, and where the last one ends.
  private let starts: [UInt64]
  private let end: UInt64
  private let unit: UInt64
  private let chunk: UInt64
  private let splitsZeroes: Bool
  private let salvages: Bool
  private let mutex = AsyncMutex()
  private let hasStopped = Atomic(false)
  private var next: UInt64
  private let readyLock = FutexLock(.leaf)
  /// Ranges that nobody has taken, the last one first; `readyLock` guards them.
  private var ready: [CopyRange] = []
  /// What the last question found: a range of the target that is alike.
  private var known: (kind: CopyKind, range: Range<UInt64>) = (.nothing, 0..<0)

  /// - Parameters:
  ///   - sources: What is copied, one after the other.
  ///   - unit: The bytes of the target's unit: a power of two, at least 512.
  ///   - chunk: The most bytes of a range of data: a power of two, at least `unit`.
  ///   - splitsZeroes: Ranges of zeros are no longer than those of data.
  ///   - salvages: What cannot be looked up counts as data.
  ///   - range: The bytes of the target that are handed out; their bounds are multiples of `unit`, or
  ///     the end of all.
  init(
    _ sources: [CopySource], unit: UInt64, chunk: UInt64, splitsZeroes: Bool, salvages: Bool,
    range: Range<UInt64>
  ) {
    self.sources = sources
    self.unit = unit
    self.chunk = chunk
    self.splitsZeroes = splitsZeroes
    self.salvages = salvages
    var starts: [UInt64] = [0]
    for source in sources { starts.append(starts[starts.count - 1] + source.length) }
    self.starts = starts
    next = range.lowerBound
    end = range.upperBound
  }

  /// Lets ``next()`` return nil from now on: a task has failed.
  func stop() { hasStopped.store(true, ordering: .relaxed) }

  /// The next range; nil after the last one.
  func next() async throws(JobError) -> CopyRange? {
    if let range = takeReady() { return range }
    await mutex.acquire()
    defer { mutex.release() }
    if let range = takeReady() { return range }
    guard !hasStopped.load(ordering: .relaxed), next < end else { return nil }
    let first = try await scan(from: next)
    next += first.length
    await lookAhead()
    return first
  }

  private func takeReady() -> CopyRange? {
    readyLock.withLock { hasStopped.load(ordering: .relaxed) ? nil : ready.popLast() }
  }

  /// Finds the ranges that follow, with the mutex held.
  ///
  /// An error ends the look ahead. The next call of ``next()`` meets it again, and throws it.
  private func lookAhead() async {
    var found: [CopyRange] = []
    while found.count < Self.ahead, next < end {
      guard let range = try? await scan(from: next) else { break }
      next += range.length
      found.append(range)
    }
    readyLock.withLock { ready = found.reversed() }
  }

  /// The parts of the sources that a range of the target is made of, in its order; offsets count from
  /// the start of their source.
  func parts(_ offset: UInt64, _ length: UInt64) -> [(source: Int, offset: UInt64, length: UInt64)]
  {
    var parts: [(source: Int, offset: UInt64, length: UInt64)] = []
    for index in sources.indices {
      let first = max(offset, starts[index])
      let last = min(offset + length, starts[index + 1])
      if first < last { parts.append((index, first - starts[index], last - first)) }
    }
    return parts
  }

  private func scan(from start: UInt64) async throws(JobError) -> CopyRange {
    let first = try await alike(from: start)
    if first.kind != .data {
      let whole = first.end == end ? end : first.end & ~(unit - 1)
      if whole > start { return CopyRange(kind: first.kind, offset: start, length: whole - start) }
      let edge = min(end, start + unit)
      let kind = try await kind(of: start..<edge)
      if kind != .data { return CopyRange(kind: kind, offset: start, length: edge - start) }
    }
    let limit = endOfChunk(start)
    var reach = min(limit, start + unit)
    if first.kind == .data { reach = min(limit, (first.end + unit - 1) & ~(unit - 1)) }
    while reach < limit {
      let following = try await look(at: reach)
      if following.kind != .data { break }
      reach = min(limit, (following.range.upperBound + unit - 1) & ~(unit - 1))
    }
    return CopyRange(kind: .data, offset: start, length: reach - start)
  }

  private func endOfChunk(_ start: UInt64) -> UInt64 { min(end, (start | (chunk - 1)) + 1) }

  /// What begins at `start`, across answers that are alike; data up to the end of its chunk.
  private func alike(from start: UInt64) async throws(JobError) -> (kind: CopyKind, end: UInt64) {
    let first = try await look(at: start)
    let isShort = first.kind == .data || splitsZeroes
    let limit = isShort ? endOfChunk(start) : min(end, start + Self.emptyLimit)
    var reach = first.range.upperBound
    while reach < limit {
      let following = try await look(at: reach)
      if following.kind != first.kind { break }
      reach = following.range.upperBound
    }
    return (first.kind, min(reach, limit))
  }

  /// The kind of a unit whose parts differ: data if any part is data.
  private func kind(of range: Range<UInt64>) async throws(JobError) -> CopyKind {
    var kind: CopyKind?
    var place = range.lowerBound
    while place < range.upperBound {
      let found = try await look(at: place)
      if kind ?? found.kind != found.kind { return .data }
      kind = found.kind
      place = found.range.upperBound
    }
    return kind ?? .data
  }

  private func look(
    at offset: UInt64
  ) async throws(JobError) -> (kind: CopyKind, range: Range<UInt64>) {
    if known.range.contains(offset) { return known }
    guard let index = starts.lastIndex(where: { $0 <= offset }), index < sources.count else {
      return (.nothing, offset..<end)
    }
    let source = sources[index]
    let inside = offset - starts[index]
    do throws(ImageError) {
      let found = try await source.status(at: inside, length: source.length - inside)
      known = (found.kind, offset..<offset + found.length)
    } catch {
      guard salvages else { throw .image(error) }
      known = (.data, offset..<min(starts[index + 1], (offset | (unit - 1)) + 1))
    }
    return known
  }
}
