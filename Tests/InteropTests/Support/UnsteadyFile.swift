import BlockCore
import HostFiles
import TestTools

/// When the files of one image give way.
final class Unsteadiness: @unchecked Sendable {
  // why: everything runs on the one thread of runBlocking.
  private var random: SeededGenerator

  init(_ random: SeededGenerator) { self.random = random }

  func giveWay() async {
    for _ in 0..<Int.random(in: 0...3, using: &random) { await Task.yield() }
  }
}

/// A host file that gives way to other tasks at random moments around each operation, so that
/// concurrent requests interleave although the file under it blocks.
final class UnsteadyFile: HostFile {
  private let file: RingHostFile
  private let unsteadiness: Unsteadiness

  init(_ file: RingHostFile, _ unsteadiness: Unsteadiness) {
    self.file = file
    self.unsteadiness = unsteadiness
  }

  var traits: HostFileTraits { file.traits }

  private func giveWay() async { await unsteadiness.giveWay() }

  func read(into buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    await giveWay()
    try await file.read(into: buffer, at: offset)
    await giveWay()
  }

  func write(from buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    await giveWay()
    try await file.write(from: buffer, at: offset)
    await giveWay()
  }

  func writeZeroes(at offset: HostOffset, length: UInt64) async throws(Errno) {
    await giveWay()
    try await file.writeZeroes(at: offset, length: length)
    await giveWay()
  }

  func punchHole(at offset: HostOffset, length: UInt64) async throws(Errno) {
    await giveWay()
    try await file.punchHole(at: offset, length: length)
    await giveWay()
  }

  func sync() async throws(Errno) {
    await giveWay()
    try await file.sync()
    await giveWay()
  }

  func length() async throws(Errno) -> UInt64 { try await file.length() }

  func extend(to length: UInt64) async throws(Errno) {
    if try await self.length() < length { try await setLength(length) }
  }

  func setLength(_ length: UInt64) async throws(Errno) { try await file.setLength(length) }
}
