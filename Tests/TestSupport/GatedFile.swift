package import BlockCore

/// A layer that holds operations on one range back until the test lets them go.
package final class GatedFile: ForwardingFile, @unchecked Sendable {  // why: one thread
  package enum Operation: Sendable { case read, write, punch }

  package let file: any HostFile
  /// Operations that touch it wait; nil lets all go.
  package var gate: Range<UInt64>? {
    didSet {
      guard gate == nil else { return }
      let waiting = held
      held = []
      for continuation in waiting { continuation.resume() }
    }
  }
  /// Which operations wait.
  package var operations: Set<Operation> = [.read]
  /// The most operations that wait; the others pass.
  package var limit = Int.max
  /// Operations that pass before the first one waits.
  package var skip = 0
  package private(set) var held: [UnsafeContinuation<Void, Never>] = []
  /// The operations of each kind in the range while it is set, held or not.
  package private(set) var counts: [Operation: Int] = [:]

  package init(_ file: any HostFile) { self.file = file }

  private func pass(_ operation: Operation, _ offset: HostOffset, _ length: UInt64) async {
    guard let gate, gate.overlaps(offset.bytes..<(offset.bytes + length)) else { return }
    counts[operation, default: 0] += 1
    guard operations.contains(operation), held.count < limit else { return }
    if skip > 0 {
      skip -= 1
      return
    }
    await withUnsafeContinuation { held.append($0) }
  }

  package func read(into buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    await pass(.read, offset, UInt64(buffer.count))
    try await file.read(into: buffer, at: offset)
  }

  package func write(from buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    await pass(.write, offset, UInt64(buffer.count))
    try await file.write(from: buffer, at: offset)
  }

  package func punchHole(at offset: HostOffset, length: UInt64) async throws(Errno) {
    await pass(.punch, offset, length)
    try await file.punchHole(at: offset, length: length)
  }
}
