import BlockCore
import Glibc

/// A host file in memory that holds only the pages that were written, so that an image may point
/// anywhere below 2^63 at no cost.
///
/// Counts its calls: code that runs away meets ``callLimit`` and traps instead of hanging a test.
final class SparseFile: HostFile, @unchecked Sendable {
  // why: everything runs on the one thread of runBlocking.
  private static let pageSize = 4096
  /// More calls than any test here has need of.
  static let callLimit = 400_000

  let traits: HostFileTraits
  private var pages: [UInt64: UnsafeMutableRawPointer] = [:]
  private var size: UInt64
  private(set) var calls = 0
  /// The calls that changed, or could have changed, the file.
  private(set) var changes = 0

  init(_ bytes: [UInt8], isReadOnly: Bool = false) {
    traits = HostFileTraits(isReadOnly: isReadOnly)
    size = UInt64(bytes.count)
    bytes.withUnsafeBytes { store($0, at: 0) }
  }

  deinit { for page in pages.values { free(page) } }

  /// Stores bytes without counting it as a change; the file grows as needed.
  func place(_ bytes: [UInt8], at offset: UInt64) {
    bytes.withUnsafeBytes { store($0, at: offset) }
  }

  /// Sets the length without counting it as a change.
  func resize(_ length: UInt64) { size = length }

  private func count(change: Bool) {
    calls += 1
    precondition(calls < Self.callLimit, "the engine does not come to an end")
    if change {
      changes += 1
      precondition(!traits.isReadOnly, "a read-only image was written")
    }
  }

  /// Calls `body` with each page of a range: its number, the bytes in it, and how many come before.
  private func forEachPage(
    _ offset: UInt64, _ count: Int, _ body: (UInt64, Range<Int>, Int) -> Void
  ) {
    var done = 0
    while done < count {
      let position = offset + UInt64(done)
      let inPage = Int(position % UInt64(Self.pageSize))
      let part = min(count - done, Self.pageSize - inPage)
      body(position / UInt64(Self.pageSize), inPage..<(inPage + part), done)
      done += part
    }
  }

  private func store(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) {
    guard let source = bytes.baseAddress else { return }
    forEachPage(offset, bytes.count) { number, range, start in
      let isNew = pages[number] == nil
      guard let page = pages[number] ?? calloc(1, Self.pageSize) else { return }
      if isNew { pages[number] = page }
      memcpy(page + range.lowerBound, source + start, range.count)
    }
    size = max(size, offset + UInt64(bytes.count))
  }

  func read(into buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    count(change: false)
    guard let memory = buffer.memory else { throw .invalid }
    forEachPage(offset.bytes, buffer.count) { number, range, start in
      if let page = pages[number] {
        memcpy(memory + start, page + range.lowerBound, range.count)
      } else {
        memset(memory + start, 0, range.count)
      }
    }
  }

  func write(from buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    count(change: true)
    guard let memory = buffer.memory else { throw .invalid }
    guard offset.bytes < 1 << 60 else { throw .fileTooBig }
    store(UnsafeRawBufferPointer(start: memory, count: buffer.count), at: offset.bytes)
  }

  func writeZeroes(at offset: HostOffset, length: UInt64) async throws(Errno) {
    count(change: true)
    clear(offset.bytes, length)
    size = max(size, offset.bytes + length)
  }

  func punchHole(at offset: HostOffset, length: UInt64) async throws(Errno) {
    count(change: true)
    clear(offset.bytes, length)
  }

  private func clear(_ offset: UInt64, _ length: UInt64) {
    let end = offset + length
    for number in pages.keys {
      let start = number * UInt64(Self.pageSize)
      let from = max(start, offset)
      let to = min(start + UInt64(Self.pageSize), end)
      if from >= to { continue }
      if let page = pages[number] { memset(page + Int(from - start), 0, Int(to - from)) }
    }
  }

  func sync() async throws(Errno) { count(change: true) }

  func length() async throws(Errno) -> UInt64 { size }

  func extend(to length: UInt64) async throws(Errno) {
    if try await self.length() < length { try await setLength(length) }
  }

  func setLength(_ length: UInt64) async throws(Errno) {
    count(change: true)
    if length < size { clear(length, size - length) }
    size = length
  }
}
