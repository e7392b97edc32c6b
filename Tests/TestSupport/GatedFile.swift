package import BlockCore

/// A layer that holds reads of one range back until the test lets them go.
package final class GatedFile: HostFile, @unchecked Sendable {  // why: one thread per simulation
  private let file: any HostFile
  /// Reads that touch it wait; nil lets all go.
  package var gate: Range<UInt64>? {
    didSet {
      guard gate == nil else { return }
      let waiting = held
      held = []
      for continuation in waiting { continuation.resume() }
    }
  }
  package private(set) var held: [UnsafeContinuation<Void, Never>] = []

  package init(_ file: any HostFile) { self.file = file }

  package var traits: HostFileTraits { file.traits }

  package func read(into buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    if let gate, gate.overlaps(offset.bytes..<(offset.bytes + UInt64(buffer.count))) {
      await withUnsafeContinuation { held.append($0) }
    }
    try await file.read(into: buffer, at: offset)
  }

  package func write(from buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    try await file.write(from: buffer, at: offset)
  }

  package func writeZeroes(at offset: HostOffset, length: UInt64) async throws(Errno) {
    try await file.writeZeroes(at: offset, length: length)
  }

  package func punchHole(at offset: HostOffset, length: UInt64) async throws(Errno) {
    try await file.punchHole(at: offset, length: length)
  }

  package func sync() async throws(Errno) { try await file.sync() }
  package func length() async throws(Errno) -> UInt64 { try await file.length() }
  package func setLength(_ length: UInt64) async throws(Errno) {
    try await file.setLength(length)
  }
  package func extend(to length: UInt64) async throws(Errno) { try await file.extend(to: length) }
}
