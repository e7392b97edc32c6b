package import BlockCore

/// A host file in memory: immediate (and safe to use from many threads), or simulated.
///
/// Simulated, each operation suspends once; its effect falls at its issue or at its completion, as
/// the ``SimulatedHost`` decides. A punched range is filled with garbage, since its contents are
/// undefined by contract.
package final class MemoryFile: HostFile, @unchecked Sendable {  // why: `lock`, or one thread
  package enum Kind: String, Sendable { case read, write, zero, punch, resize }

  private struct Active {
    let number: UInt64
    let kind: Kind
    let range: Range<UInt64>
  }

  package let traits: HostFileTraits
  package let bytes: ImageBytes
  private let host: SimulatedHost?
  private let lock = FutexLock(.leaf)
  private var active: [Active] = []
  private var number: UInt64 = 0
  /// Report transfers that overlap in time and place, one of them not a read.
  ///
  /// For workloads whose guest requests never overlap: then no two host transfers may.
  package var forbidsOverlap = false
  /// Do not report a write during a read: a look-up for which the cache has no room reads a table beside
  /// whoever loads it, changes it and writes it back, and then looks again.
  package var allowsWritesDuringReads = false
  /// Immediate operations let other tasks of the same thread run.
  package var yields = false
  /// Punched ranges read as zeros, as in a regular file, or stay as they are.
  package var punchesToZeros = false
  /// A device that can make ranges zero at once; else clearing leaves garbage.
  package var clears = false
  package private(set) var violations: [String] = []

  package init(
    _ bytes: ImageBytes, host: SimulatedHost? = nil, traits: HostFileTraits = HostFileTraits()
  ) {
    self.bytes = bytes
    self.host = host
    self.traits = traits
  }

  package func read(into buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    guard let memory = buffer.memory else { throw .invalid }
    await perform(.read, offset, UInt64(buffer.count)) {
      bytes.read(into: memory, count: buffer.count, at: Int(offset.bytes))
    }
  }

  package func write(from buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    guard let memory = buffer.memory else { throw .invalid }
    try requireSpace(offset, UInt64(buffer.count))
    await perform(.write, offset, UInt64(buffer.count)) {
      bytes.write(memory, count: buffer.count, at: Int(offset.bytes))
    }
  }

  package func writeZeroes(at offset: HostOffset, length: UInt64) async throws(Errno) {
    try requireSpace(offset, length)
    await perform(.zero, offset, length) {
      bytes.fill(0, count: Int(length), at: Int(offset.bytes))
    }
  }

  package func punchHole(at offset: HostOffset, length: UInt64) async throws(Errno) {
    await perform(.punch, offset, length) {
      let start = Int(offset.bytes)
      let count = min(Int(length), bytes.length - start)
      if count > 0 { bytes.fill(punchesToZeros ? 0 : 0xdd, count: count, at: start) }
    }
  }

  package func clear(at offset: HostOffset, length: UInt64) async -> Bool {
    if !traits.isBlockDevice { lock.withLock { violations.append("a file is cleared") } }
    if Int(offset.bytes) + Int(length) > bytes.length {
      lock.withLock { violations.append("cleared beyond the device: \(offset.bytes)+\(length)") }
      return false
    }
    await perform(clears ? .zero : .punch, offset, length) {
      bytes.fill(clears ? 0 : 0xdd, count: Int(length), at: Int(offset.bytes))
    }
    return clears
  }

  /// Reads at once, beside whatever is under way, as another process would.
  package func peek(into target: UnsafeMutableRawPointer, count: Int, at offset: Int) {
    lock.withLock { bytes.read(into: target, count: count, at: offset) }
  }

  /// The length, seen in the same way.
  package var lengthNow: Int { lock.withLock { bytes.length } }

  package func sync() async throws(Errno) {
    if let host { await host.complete("sync") }
  }

  package func length() async throws(Errno) -> UInt64 { lock.withLock { UInt64(bytes.length) } }

  package func extend(to length: UInt64) async throws(Errno) {
    if try await self.length() < length { try await setLength(length) }
  }

  package func setLength(_ length: UInt64) async throws(Errno) {
    if !bytes.fits(0, Int(length)) { throw .fileTooBig }
    if traits.isBlockDevice { lock.withLock { violations.append("length of a device set") } }
    let old = lock.withLock { UInt64(bytes.length) }
    let range = min(old, length)..<max(old, length)
    await perform(.resize, HostOffset(range.lowerBound), UInt64(range.count)) {
      // Only a cut makes a file shorter, whatever has extended it meanwhile.
      if length < old || Int(length) > bytes.length { bytes.setLength(Int(length)) }
    }
  }

  /// Like unwritten storage of a regular file: zeros up to the end.
  package func endOfData(from offset: HostOffset) async -> HostOffset? {
    if traits.isBlockDevice { return nil }
    return lock.withLock {
      var end = bytes.length
      while end > Int(offset.bytes), bytes.base.load(fromByteOffset: end - 1, as: UInt8.self) == 0 {
        end -= 1
      }
      return HostOffset(max(UInt64(end), offset.bytes))
    }
  }

  private func requireSpace(_ offset: HostOffset, _ length: UInt64) throws(Errno) {
    if offset.bytes > 1 << 56 || !bytes.fits(Int(offset.bytes), Int(length)) { throw .fileTooBig }
    if traits.isBlockDevice && Int(offset.bytes) + Int(length) > bytes.length { throw .noSpace }
  }

  private func perform(
    _ kind: Kind, _ offset: HostOffset, _ length: UInt64, _ apply: () -> Void
  ) async {
    guard let host else {
      lock.withLock(apply)
      if yields { await Task.yield() }
      return
    }
    if traits.isReadOnly && kind != .read { violations.append("\(kind) of a read-only file") }
    let number = begin(kind, offset.bytes..<(offset.bytes + length))
    let early = host.flip()
    if early { apply() }
    await host.complete("\(kind.rawValue) at \(offset.bytes)+\(length)")
    if !early { apply() }
    active.removeAll { $0.number == number }
  }

  private func begin(_ kind: Kind, _ range: Range<UInt64>) -> UInt64 {
    number += 1
    if forbidsOverlap {
      for other in active where other.range.overlaps(range) {
        if other.kind == .read && (kind == .read || kind == .write && allowsWritesDuringReads) {
          continue
        }
        violations.append("\(kind) \(range) during \(other.kind) \(other.range)")
      }
    }
    active.append(Active(number: number, kind: kind, range: range))
    return number
  }
}
