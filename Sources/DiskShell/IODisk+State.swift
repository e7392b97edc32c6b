import BlockCore
import DiskImages
import QCOW2Engine

/// The VM state area, which only qcow2 images have.
extension IODisk {
  private static let pieceBytes: UInt64 = 1 << 20

  /// Reads a range, piece by piece; `body` gets each piece's bytes and their offset.
  func readState(
    _ offset: UInt64, _ count: UInt64, _ body: (UnsafeRawBufferPointer, UInt64) -> Void
  ) async throws(Errno) {
    try await forEachPiece(offset, count) { (engine, data, at) async throws(ImageError) in
      try await engine.readVMState(into: data, at: at)
      unsafe body(UnsafeRawBufferPointer(start: data.memory, count: data.count), at)
    }
  }

  /// Writes a range, piece by piece; `fill` makes each piece's bytes, given where they lie in the
  /// request.
  func writeState(
    _ offset: UInt64, _ count: UInt64, _ fill: (UnsafeMutableRawBufferPointer, UInt64) -> Void
  ) async throws(Errno) {
    try await forEachPiece(offset, count) { (engine, data, at) async throws(ImageError) in
      unsafe fill(
        UnsafeMutableRawBufferPointer(start: data.memory, count: data.count), at - offset)
      try await engine.writeVMState(from: data, at: at)
    }
  }

  private func forEachPiece(
    _ offset: UInt64, _ count: UInt64,
    _ body: (Image, DataBuffer, UInt64) async throws(ImageError) -> Void
  ) async throws(Errno) {
    guard case .image(let image) = kind else { throw .notSupported }
    let buffer = IOBuffer(count: Int(min(count, Self.pieceBytes)))
    defer { withExtendedLifetime(buffer) {} }
    var done: UInt64 = 0
    while done < count {
      let length = min(count - done, Self.pieceBytes)
      do throws(ImageError) {
        try await body(image.engine, buffer.data.slice(0, Int(length)), offset + done)
      } catch { throw error.errno }
      done += length
    }
  }
}
