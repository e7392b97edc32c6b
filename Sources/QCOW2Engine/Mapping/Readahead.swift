import BlockCore
import QCOW2Format

/// Notices sequential streams by the L2 slices that they miss.
///
/// A slice is named by its number: guest offset divided by the bytes that a slice maps. Looked at by
/// slow requests only.
final class Readahead: @unchecked Sendable {  // why: `lock` guards `expected` and `next`
  private static let streams = 16
  private let lock = FutexLock(.leaf)
  /// For each stream, the slice that it will miss next; UInt64.max for none.
  private var expected = [UInt64](repeating: .max, count: streams)
  private var next = 0

  /// Notes that `slice` is not in the cache.
  ///
  /// - Returns: whether a stream has got there; true once for each slice.
  func noteMiss(_ slice: UInt64) -> Bool {
    lock.withLock {
      if let stream = expected.firstIndex(of: slice) {
        expected[stream] = slice + 1
        return true
      }
      if !expected.contains(slice + 1) {
        expected[next] = slice + 1
        next = (next + 1) % Self.streams
      }
      return false
    }
  }

  /// Notes that a stream uses a slice that was loaded for it, at most `window` slices ahead.
  func noteUse(_ slice: UInt64, window: UInt64) {
    lock.withLock {
      for stream in expected.indices
      where expected[stream] <= slice && slice - expected[stream] <= window {
        expected[stream] = slice + 1
        return
      }
    }
  }
}

extension Mapping {
  /// Guest bytes that a stream should have mapped ahead of it.
  private static let aheadBytes: UInt64 = 8 << 20
  /// Tables in a row that the L1 table may lack before a stream is given up.
  private static let gapLimit = 64

  /// How many slices are loaded ahead of a stream.
  private var aheadWindow: UInt64 { min(max(Self.aheadBytes / slices.bytesPerSlice, 2), 16) }

  /// Runs `body`, which carries out a READ or WRITE that the hit path could not, and loads beside it the
  /// slices that it and its stream will need.
  ///
  /// Returns when all of that has ended: nothing is loaded under no request's stamp.
  func withSlicesAhead(
    of request: BlockRequest, _ body: () async throws(ImageError) -> Void
  ) async throws(ImageError) {
    let ahead = slicesAhead(of: request)
    if ahead.isEmpty || !ReadBatch.mayRunTasks { return try await body() }
    let failure = await withTaskGroup(of: Void.self) { group in
      for slice in ahead { group.addTask { await self.loadAhead(slice) } }
      do throws(ImageError) { try await body() } catch { return error as ImageError? }
      return nil
    }
    if let failure { throw failure }
  }

  /// The slices to load while a request runs that the hit path could not answer: those that it needs
  /// itself beyond its first one, and what its stream will need next.
  ///
  /// Takes no more than a window of slices, and none that the cache has or that is being loaded. A
  /// small cache is left alone: it would lose more than it gains.
  func slicesAhead(of request: BlockRequest) -> [SliceAhead] {
    let window = aheadWindow
    guard request.length > 0, cache.slotCount >= 4 * Int(window) else { return [] }
    let first = request.offset.bytes / slices.bytesPerSlice
    let last = (request.offset.bytes + (request.length - 1)) / slices.bytesPerSlice
    var wanted: [SliceAhead] = []
    if last > first { collect(first + 1, upTo: last + 1, &wanted) }
    if isStreaming(at: last, window) { collect(last + 1, upTo: .max, &wanted) }
    return wanted
  }

  /// Whether a stream has just reached a slice: one that was loaded ahead for it, or one that it
  /// misses right after the one before.
  private func isStreaming(at slice: UInt64, _ window: UInt64) -> Bool {
    guard let key = place(slice)?.key else { return false }
    switch cache.touch(key) {
    case .resident: return false
    case .ahead:
      readahead.noteUse(slice, window: window)
      return true
    case .loading, .empty: return readahead.noteMiss(slice)
    }
  }

  /// Adds the slices from `first` on that are not in the cache, up to a window's worth.
  private func collect(_ first: UInt64, upTo end: UInt64, _ wanted: inout [SliceAhead]) {
    let window = Int(aheadWindow)
    let end = min(end, (size + slices.bytesPerSlice - 1) / slices.bytesPerSlice)
    let perTable = geometry.bytesPerL2Table / slices.bytesPerSlice
    var slice = first
    var seen = 0
    var gaps = 0
    while slice < end && seen < window && wanted.count < window && gaps < Self.gapLimit {
      guard let place = place(slice) else {
        gaps += 1
        slice = (slice / perTable + 1) * perTable
        continue
      }
      if cache.state(of: place.key) == .empty { wanted.append(place) }
      seen += 1
      slice += 1
    }
  }

  /// Where a slice lies; nil if it has no usable table.
  private func place(_ slice: UInt64) -> SliceAhead? {
    let part = slices.part(from: GuestOffset(slice * slices.bytesPerSlice), length: 1)
    guard let table = tables.place(part.l1Index).table else { return nil }
    return SliceAhead(key: table + part.sliceOffset)
  }

  /// Loads a slice for later; the caller's stamp keeps its table where it is.
  ///
  /// A failure is no one's: whoever needs the slice will meet it.
  func loadAhead(_ slice: SliceAhead) async { await cache.loadAhead(slice.key, storage: storage) }
}

/// A slice to be loaded ahead of its use.
struct SliceAhead: Sendable {
  let key: HostOffset
}
