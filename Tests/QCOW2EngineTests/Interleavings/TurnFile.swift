import BlockCore
import TestSupport

/// A host file in memory for threads that run in turns: each operation is done at once, between two yield points.
///
/// It needs no lock: only the thread whose turn it is uses it.
final class TurnFile: HostFile, @unchecked Sendable {  // why: one thread at a time
  let traits = HostFileTraits()
  let bytes: ImageBytes
  /// The bytes at the last barrier: what a power cut leaves at least.
  private(set) var durable: ImageBytes

  init(_ bytes: ImageBytes) {
    self.bytes = bytes
    durable = bytes.copy()
  }

  private func perform<R>(_ operation: () -> R) -> R {
    YieldPoint.file.pass()
    defer { YieldPoint.file.pass() }
    return operation()
  }

  func read(into buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    guard let memory = buffer.memory else { throw .invalid }
    perform { bytes.read(into: memory, count: buffer.count, at: Int(offset.bytes)) }
  }

  func write(from buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    guard let memory = buffer.memory else { throw .invalid }
    perform { bytes.write(memory, count: buffer.count, at: Int(offset.bytes)) }
  }

  func writeZeroes(at offset: HostOffset, length: UInt64) async throws(Errno) {
    perform { bytes.fill(0, count: Int(length), at: Int(offset.bytes)) }
  }

  /// What the range holds then is undefined by contract: garbage.
  func punchHole(at offset: HostOffset, length: UInt64) async throws(Errno) {
    perform {
      let count = min(Int(length), bytes.length - Int(offset.bytes))
      if count > 0 { bytes.fill(0xdd, count: count, at: Int(offset.bytes)) }
    }
  }

  func sync() async throws(Errno) { perform { durable.assign(bytes) } }

  func length() async throws(Errno) -> UInt64 { UInt64(bytes.length) }

  func setLength(_ length: UInt64) async throws(Errno) { perform { bytes.setLength(Int(length)) } }

  func extend(to length: UInt64) async throws(Errno) {
    perform { if bytes.length < Int(length) { bytes.setLength(Int(length)) } }
  }

  /// Becomes a copy of `template`, all of it durable.
  func begin(from template: ImageBytes) {
    bytes.assign(template)
    durable.assign(template)
  }
}
