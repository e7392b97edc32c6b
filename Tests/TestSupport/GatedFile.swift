package import BlockCore

/// A layer that holds reads of one range back until the test lets them go.
package final class GatedFile: ForwardingFile, @unchecked Sendable {  // why: one thread
  package let file: any HostFile
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

  package func read(into buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    if let gate, gate.overlaps(offset.bytes..<(offset.bytes + UInt64(buffer.count))) {
      await withUnsafeContinuation { held.append($0) }
    }
    try await file.read(into: buffer, at: offset)
  }
}
