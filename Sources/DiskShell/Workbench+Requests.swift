import BlockCore
import Glibc

/// The commands that read and write.
extension Workbench {
  func read(_ read: IORead, from disk: IODisk) async throws(IOFailure) {
    let start = MonotonicClock.nanoseconds()
    var isAsExpected = true
    var dump = IODump(at: read.offset)
    let shows = read.dumps && !read.printing.isQuiet
    let showsAtOnce = shows && read.count <= Self.mostDumped
    do throws(Errno) {
      try unsafe await Self.bytes(of: read, from: disk) { bytes, offset in
        unsafe isAsExpected = isAsExpected && Self.matches(bytes, offset, read)
        if showsAtOnce { unsafe dump.add(bytes) }
      }
    } catch { throw .request(read.name, error) }
    let time = MonotonicClock.nanoseconds() - start
    if !isAsExpected {
      IOOutput.write(
        "Pattern verification failed at offset \(read.offset + read.verified.lowerBound), "
          + "\(read.verified.count) bytes\n")
    }
    if showsAtOnce {
      IOOutput.write(dump.takeAll())
    } else if shows {
      try await show(read, from: disk)
    }
    report("read", read.offset, read.count, time, read.printing)
    if !isAsExpected { throw .told }
  }

  private static func bytes(
    of read: IORead, from disk: IODisk, _ body: (UnsafeRawBufferPointer, UInt64) -> Void
  ) async throws(Errno) {
    if read.isState {
      try unsafe await disk.readState(read.offset, read.count, body)
    } else {
      try unsafe await disk.read(read.offset, read.count, body)
    }
  }

  /// The most bytes that are kept to be shown after they were verified.
  private static let mostDumped: UInt64 = 1 << 20

  /// Reads again what is too much to be kept, and shows it.
  private func show(_ read: IORead, from disk: IODisk) async throws(IOFailure) {
    var dump = IODump(at: read.offset)
    do throws(Errno) {
      try unsafe await Self.bytes(of: read, from: disk) { bytes, _ in
        unsafe dump.add(bytes)
        IOOutput.write(dump.takeRows())
      }
    } catch { throw .request(read.name, error) }
    IOOutput.write(dump.takeAll())
  }

  /// Whether a piece has the pattern wherever it is to be verified.
  private static func matches(
    _ bytes: UnsafeRawBufferPointer, _ offset: UInt64, _ read: IORead
  ) -> Bool {
    guard let pattern = read.pattern else { return true }
    let first = offset - read.offset
    let piece = first..<(first + UInt64(bytes.count))
    let verified = piece.clamped(to: read.verified)
    let range = Int(verified.lowerBound - first)..<Int(verified.upperBound - first)
    guard !range.isEmpty,
      let start = unsafe bytes.baseAddress.map({ unsafe $0 + range.lowerBound })
    else { return true }
    // The first byte is right, and each is like the one before.
    return unsafe bytes[range.lowerBound] == pattern
      && memcmp(start, start + 1, range.count - 1) == 0
  }

  func write(_ write: IOWrite, to disk: IODisk) async throws(IOFailure) {
    var source: [UInt8] = []
    if case .source(let path) = write.content {
      source = try IOSource.read(path, most: write.count)
    }
    let start = MonotonicClock.nanoseconds()
    do throws(Errno) { try await carryOut(write, source, on: disk) } catch {
      throw .request(write.name, error)
    }
    report("wrote", write.offset, write.count, MonotonicClock.nanoseconds() - start, write.printing)
  }

  private func carryOut(
    _ write: IOWrite, _ source: [UInt8], on disk: IODisk
  ) async throws(Errno) {
    switch write.content {
    case .zeroes(let unmaps, let allowsFallback):
      if !allowsFallback { try await disk.requireZeroesWithoutData(write.offset, write.count) }
      try await disk.writeZeroes(
        write.offset, write.count, unmaps: unmaps, isFUA: write.isFUA)
    case .pattern(let byte):
      try unsafe await send(write, to: disk) { memory, _ in
        unsafe memory.initializeMemory(as: UInt8.self, repeating: byte)
      }
    case .source:
      try unsafe await send(write, to: disk) { memory, position in
        unsafe Self.repeatBytes(of: source, from: position, into: memory)
      }
    }
  }

  private func send(
    _ write: IOWrite, to disk: IODisk, _ fill: (UnsafeMutableRawBufferPointer, UInt64) -> Void
  ) async throws(Errno) {
    if write.isState {
      return try unsafe await disk.writeState(write.offset, write.count, fill)
    }
    if write.isCompressed { try disk.requireCompressible(write.offset, write.count) }
    let way = write.isCompressed ? IODisk.WriteWay.compressed : write.isFUA ? .throughCache : .plain
    try unsafe await disk.write(write.offset, write.count, way, fill)
  }

  /// Fills memory with `source`, again and again, as if it had begun `position` bytes before.
  private static func repeatBytes(
    of source: [UInt8], from position: UInt64, into memory: UnsafeMutableRawBufferPointer
  ) {
    guard !source.isEmpty else { return }
    var next = Int(position % UInt64(source.count))
    var done = 0
    while done < memory.count {
      let count = min(source.count - next, memory.count - done)
      unsafe source.withUnsafeBytes { bytes in
        unsafe UnsafeMutableRawBufferPointer(rebasing: memory[done..<(done + count)])
          .copyMemory(from: UnsafeRawBufferPointer(rebasing: bytes[next..<(next + count)]))
      }
      done += count
      next = 0
    }
  }

  func discard(_ discard: IODiscard, on disk: IODisk) async throws(IOFailure) {
    let start = MonotonicClock.nanoseconds()
    do throws(Errno) { try await disk.discard(discard.offset, discard.count) } catch {
      throw .request("discard", error)
    }
    report(
      "discard", discard.offset, discard.count, MonotonicClock.nanoseconds() - start,
      discard.printing)
  }

  private func report(
    _ action: String, _ offset: UInt64, _ count: UInt64, _ nanoseconds: UInt64,
    _ printing: IOPrinting
  ) {
    if printing.isQuiet { return }
    IOOutput.write(
      IOReport.lines(
        action, offset: offset, count: count, nanoseconds: nanoseconds,
        isForMachines: printing.isForMachines))
  }
}
