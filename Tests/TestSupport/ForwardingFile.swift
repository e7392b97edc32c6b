package import BlockCore

/// A layer over a host file that changes some of what it does: the rest goes to ``file`` as it is.
package protocol ForwardingFile: HostFile {
  var file: any HostFile { get }
}

extension ForwardingFile {
  package var traits: HostFileTraits { file.traits }

  package func read(into buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
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

  package func reserve(
    at offset: HostOffset, length: UInt64
  ) async throws(Errno) -> Reservation {
    try await file.reserve(at: offset, length: length)
  }

  package func allocateZeroes(at offset: HostOffset, length: UInt64) async throws(Errno) {
    try await file.allocateZeroes(at: offset, length: length)
  }

  package func allocateHoles(
    at offset: HostOffset, length: UInt64
  ) async throws(Errno) -> Bool {
    try await file.allocateHoles(at: offset, length: length)
  }

  package func fillHoles(at offset: HostOffset, length: UInt64) async throws(Errno) {
    try await file.fillHoles(at: offset, length: length)
  }

  package func extent(at offset: HostOffset, length: UInt64) async -> HostExtent {
    await file.extent(at: offset, length: length)
  }

  package func endOfData(from offset: HostOffset) async -> HostOffset? {
    await file.endOfData(from: offset)
  }

  package func clear(at offset: HostOffset, length: UInt64) async -> Bool {
    await file.clear(at: offset, length: length)
  }
}
