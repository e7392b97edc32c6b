import BlockCore
import DiskImages
import QCOW2Engine
import Synchronization

/// A range of two disks that is compared in one way.
struct CompareRange: Sendable {
  enum Way: Sendable {
    /// Nothing is to be read.
    case same
    /// Both are read.
    case both
    /// The first, or else the second, is read and must be zeros.
    case zeroes(first: Bool)
  }

  var way: Way
  /// In bytes of both disks.
  var offset: UInt64
  var length: UInt64
}

/// Divides two disks into ranges and hands them out in order, to any task on any thread.
final class CompareScanner: @unchecked Sendable {  // why: `mutex` guards all mutable state
  private static let chunk: UInt64 = 1 << 19
  private static let emptyLimit: UInt64 = 1 << 30

  private let disks: [any OpenDisk]
  private let sizes: [UInt64]
  private let isStrict: Bool
  private let mutex = AsyncMutex()
  private let hasStopped = Atomic(false)
  private let next = Atomic<UInt64>(0)
  /// What each disk said last, and where that ends.
  private var known: [(status: BlockStatus, range: Range<UInt64>)]

  init(_ first: any OpenDisk, _ second: any OpenDisk, isStrict: Bool) {
    disks = [first, second]
    sizes = disks.map(\.target.size)
    self.isStrict = isStrict
    known = Array(repeating: (BlockStatus(kind: .unallocated, length: 1), 0..<0), count: 2)
  }

  /// Lets ``next(_:)`` return nil from now on.
  func stop() { hasStopped.store(true, ordering: .relaxed) }

  /// The first byte that has not been handed out.
  var position: UInt64 { next.load(ordering: .relaxed) }

  /// The next range; nil after the last one, and where something before it has been found.
  func next(_ findings: CompareFindings) async throws(JobError) -> CompareRange? {
    await mutex.acquire()
    defer { mutex.release() }
    let start = position
    guard !hasStopped.load(ordering: .relaxed), start < max(sizes[0], sizes[1]),
      !findings.isDecided(before: start)
    else { return nil }
    let range = try await scan(start, findings)
    if let range { next.store(range.offset + range.length, ordering: .relaxed) }
    return range
  }

  private func scan(
    _ start: UInt64, _ findings: CompareFindings
  ) async throws(JobError) -> CompareRange? {
    guard start < sizes[0] else { return try await rest(1, start) }
    guard start < sizes[1] else { return try await rest(0, start) }
    let one = try await look(0, start)
    let two = try await look(1, start)
    if isStrict, !one.status.isAlike(two.status) {
      findings.note(.status, at: start)
      return nil
    }
    let end = min(one.range.upperBound, two.range.upperBound)
    let way: CompareRange.Way =
      switch (one.status.kind.isData, two.status.kind.isData) {
      case (false, false): .same
      case (true, true): .both
      case (let first, _): .zeroes(first: first)
      }
    return range(way, start, end)
  }

  /// Behind the end of the shorter disk, the longer one must be zeros.
  private func rest(_ disk: Int, _ start: UInt64) async throws(JobError) -> CompareRange {
    let found = try await look(disk, start)
    let way: CompareRange.Way = found.status.kind.isData ? .zeroes(first: disk == 0) : .same
    return range(way, start, found.range.upperBound)
  }

  private func range(
    _ way: CompareRange.Way, _ start: UInt64, _ end: UInt64
  ) -> CompareRange {
    var limit = (start | (Self.chunk - 1)) + 1
    if case .same = way { limit = start + Self.emptyLimit }
    return CompareRange(way: way, offset: start, length: min(end, limit) - start)
  }

  private func look(
    _ disk: Int, _ offset: UInt64
  ) async throws(JobError) -> (status: BlockStatus, range: Range<UInt64>) {
    if known[disk].range.contains(offset) { return known[disk] }
    do throws(ImageError) {
      let found = try await joined(disk, offset)
      known[disk] = (found, offset..<offset + found.length)
    } catch { throw .lookingUp(disk: disks[disk].name, at: offset, error) }
    return known[disk]
  }

  /// Compressed clusters side by side are one range, unless the answers are compared.
  private func joined(_ disk: Int, _ offset: UInt64) async throws(ImageError) -> BlockStatus {
    var found = try await disks[disk].status(
      at: GuestOffset(offset), length: sizes[disk] - offset)
    while !isStrict, found.kind.isData, found.length < Self.chunk,
      offset + found.length < sizes[disk]
    {
      let more = try await disks[disk].status(
        at: GuestOffset(offset + found.length), length: sizes[disk] - offset - found.length)
      if !more.kind.isData { break }
      found.length += more.length
    }
    return found
  }
}

extension BlockStatus {
  /// Whether a strict comparison takes two ranges for the same: as `qemu-img` does, by what there is and
  /// whether it has a place in the file, not by where or in which layer.
  fileprivate func isAlike(_ other: BlockStatus) -> Bool {
    kind == other.kind && (host == nil) == (other.host == nil)
  }
}

/// What the tasks of a comparison have found: the finding of the lowest offset counts.
final class CompareFindings: Sendable {
  private enum Finding {
    case difference(CompareJob.Result.Difference)
    case failure(JobError)
  }

  private let lowest = Mutex<(offset: UInt64, finding: Finding)?>(nil)

  func note(_ difference: CompareJob.Result.Difference, at offset: UInt64) {
    note(.difference(difference), offset)
  }

  func note(_ failure: JobError, at offset: UInt64) { note(.failure(failure), offset) }

  private func note(_ finding: Finding, _ offset: UInt64) {
    lowest.withLock { lowest in
      if let known = lowest, known.offset <= offset { return }
      lowest = (offset, finding)
    }
  }

  /// Whether something was found below `offset`, or at it.
  func isDecided(before offset: UInt64) -> Bool {
    lowest.withLock { $0.map { $0.offset <= offset } ?? false }
  }

  /// - Throws: the failure, if that is the lowest finding.
  func write(to result: inout CompareJob.Result) throws(JobError) {
    switch lowest.withLock({ $0 }) {
    case nil: return
    case (let offset, .difference(let difference))?:
      result.difference = difference
      result.offset = offset
    case (_, .failure(let error))?: throw error
    }
  }
}
