package import BlockCore

/// A layer that holds one change or barrier back, chosen by its number, until the test lets it go.
///
/// The operation has not begun while it is held. All others go on.
package final class HeldFile: ForwardingFile, @unchecked Sendable {  // why: one thread
  package let file: any HostFile
  /// The number of the operation to hold, from now on and counted from 1; nil holds none.
  package var number: Int?
  @safe private var held: UnsafeContinuation<Void, Never>?

  package init(_ file: any HostFile) { self.file = file }

  package var isHolding: Bool { held != nil }

  /// Lets the held operation go on, and holds none from now on.
  package func release() {
    number = nil
    held?.resume()
    held = nil
  }

  private func pass() async {
    guard let number else { return }
    self.number = number > 1 ? number - 1 : nil
    if number == 1 { await withUnsafeContinuation { held = $0 } }
  }

  package func write(from buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    await pass()
    try await file.write(from: buffer, at: offset)
  }

  package func writeZeroes(at offset: HostOffset, length: UInt64) async throws(Errno) {
    await pass()
    try await file.writeZeroes(at: offset, length: length)
  }

  package func punchHole(at offset: HostOffset, length: UInt64) async throws(Errno) {
    await pass()
    try await file.punchHole(at: offset, length: length)
  }

  package func sync() async throws(Errno) {
    await pass()
    try await file.sync()
  }

  package func setLength(_ length: UInt64) async throws(Errno) {
    await pass()
    try await file.setLength(length)
  }
}
