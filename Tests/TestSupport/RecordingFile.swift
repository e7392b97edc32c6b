package import BlockCore

/// One change of a host file, or barrier, as seen from above it.
package struct HostEvent: Sendable {
  package enum Kind: String, Sendable { case write, zero, punch, setLength, sync }
  package fileprivate(set) var kind: Kind
  /// The number of the file.
  package let file: Int
  package let offset: UInt64
  package let length: UInt64
  /// What was written; empty for all else.
  package let data: [UInt8]
  package let start: UInt64
  /// When it ended; UInt64.max while it runs.
  package var end: UInt64 = .max
  /// A change of length that makes the file shorter.
  package fileprivate(set) var isCut = false
  /// It ended with an error.
  package var failed = false

  package var isChange: Bool { kind != .sync }
  package var range: Range<UInt64> { offset..<(offset + length) }
}

/// The changes and barriers of all files of one simulation, by one clock; of several threads, too, if
/// nobody else uses the clock.
package final class HostLog: @unchecked Sendable {  // why: one thread per simulation, or `lock`
  let clock: LogicalClock
  fileprivate let lock = FutexLock(.leaf)
  package fileprivate(set) var events: [HostEvent] = []

  package init(clock: LogicalClock) { self.clock = clock }
}

/// A layer that keeps a log of every change and barrier, with the order of starts and ends.
// why unchecked: one thread per simulation
package final class RecordingFile: HostFile, @unchecked Sendable {
  private let file: any HostFile
  private let log: HostLog
  private let number: Int
  /// Of all files that share the log.
  package var events: [HostEvent] { log.events }

  package init(_ file: any HostFile, log: HostLog, number: Int = 0) {
    self.file = file
    self.log = log
    self.number = number
  }

  package var traits: HostFileTraits { file.traits }

  package func read(into buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    try await file.read(into: buffer, at: offset)
  }

  package func write(from buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    let data = buffer.memory.map {
      Array(UnsafeRawBufferPointer(start: $0, count: buffer.count))
    }
    let index = begin(.write, offset.bytes, UInt64(buffer.count), data ?? [])
    do { try await file.write(from: buffer, at: offset) } catch { throw fail(index, error) }
    end(index)
  }

  package func writeZeroes(at offset: HostOffset, length: UInt64) async throws(Errno) {
    let index = begin(.zero, offset.bytes, length)
    do { try await file.writeZeroes(at: offset, length: length) } catch {
      throw fail(index, error)
    }
    end(index)
  }

  package func punchHole(at offset: HostOffset, length: UInt64) async throws(Errno) {
    let index = begin(.punch, offset.bytes, length)
    do { try await file.punchHole(at: offset, length: length) } catch { throw fail(index, error) }
    end(index)
  }

  package func clear(at offset: HostOffset, length: UInt64) async -> Bool {
    let index = begin(.zero, offset.bytes, length)
    if await file.clear(at: offset, length: length) {
      end(index)
      return true
    }
    // Some of it may have become zero, or anything else.
    log.lock.withLock { log.events[index].kind = .punch }
    end(index)
    return false
  }

  package func sync() async throws(Errno) {
    let index = begin(.sync, 0, 0)
    do { try await file.sync() } catch { throw fail(index, error) }
    end(index)
  }

  package func length() async throws(Errno) -> UInt64 { try await file.length() }

  package func endOfData(from offset: HostOffset) async -> HostOffset? {
    await file.endOfData(from: offset)
  }

  package func extend(to length: UInt64) async throws(Errno) {
    if try await self.length() < length { try await setLength(length) }
  }

  package func setLength(_ length: UInt64) async throws(Errno) {
    let isCut = try await file.length() > length
    let index = begin(.setLength, length, 0)
    log.lock.withLock { log.events[index].isCut = isCut }
    do { try await file.setLength(length) } catch { throw fail(index, error) }
    end(index)
  }

  private func begin(
    _ kind: HostEvent.Kind, _ offset: UInt64, _ length: UInt64, _ data: [UInt8] = []
  ) -> Int {
    log.lock.withLock {
      log.events.append(
        HostEvent(
          kind: kind, file: number, offset: offset, length: length, data: data,
          start: log.clock.tick()))
      return log.events.count - 1
    }
  }

  private func end(_ index: Int) {
    log.lock.withLock { log.events[index].end = log.clock.tick() }
  }

  private func fail(_ index: Int, _ error: Errno) -> Errno {
    log.lock.withLock { log.events[index].failed = true }
    end(index)
    return error
  }
}
