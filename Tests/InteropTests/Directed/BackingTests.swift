import BlockCore
import DiskImages
import HostFiles
import QCOW2Engine
import Synchronization
import TestTools
import Testing

/// A host file that fails every read while it is told to.
private final class FailingReads: HostFile {
  private let file: any HostFile
  let fails = Atomic<Bool>(true)

  init(_ file: any HostFile) { self.file = file }

  var traits: HostFileTraits { file.traits }
  func read(into buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    if fails.load(ordering: .relaxed) { throw .io }
    try await file.read(into: buffer, at: offset)
  }
  func write(from buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    try await file.write(from: buffer, at: offset)
  }
  func writeZeroes(at offset: HostOffset, length: UInt64) async throws(Errno) {
    try await file.writeZeroes(at: offset, length: length)
  }
  func punchHole(at offset: HostOffset, length: UInt64) async throws(Errno) {
    try await file.punchHole(at: offset, length: length)
  }
  func sync() async throws(Errno) { try await file.sync() }
  func length() async throws(Errno) -> UInt64 { try await file.length() }
  func setLength(_ length: UInt64) async throws(Errno) { try await file.setLength(length) }
  func extend(to length: UInt64) async throws(Errno) { try await file.extend(to: length) }
}

/// Backing files: failing, hidden, encrypted otherwise, and given up [COW-4, COW-5, COW-6, ENC-7].
@Suite(.enabled(if: hasQEMU, Qemu.reason))
struct BackingTests {
  @Test(arguments: [false, true])
  func aWriteWhoseBackingFileCannotBeReadFailsAndMapsNothing(_ copiesOnRead: Bool) throws {
    var random = SeededGenerator(seed: runSeed)
    let scratch = try Scratch()
    try fillRaw(scratch, size: 1 << 20)
    let image = try DirectedImage(
      "cluster_size=64k", size: 1 << 20, backing: ("base.raw", "raw", .plain), in: scratch)
    let shadow = try image.shadow()
    var options = image.disk.options(readOnly: false)
    options.engine.copyOnRead = copiesOnRead
    let raws = Mutex<[FailingReads]>([])
    options.engineFile = { file in
      guard file.traits.isReadOnly else { return file }
      let failing = FailingReads(file)
      raws.withLock { $0.append(failing) }
      return failing
    }
    try withImage(options, &random, keepsEngineFile: true) { session in
      let buffer = IOBuffer(count: 1024)
      for operation in [BlockOperation.write, .read] {
        let result = await session.image.serve(
          BlockRequest(
            operation, offset: GuestOffset(70_144), length: 1024, data: buffer.data),
          at: RequestSlot(worker: 0, number: 0))
        #expect(result.errno == .io)
      }
      withExtendedLifetime(buffer) {}
      raws.withLock { for file in $0 { file.fails.store(false, ordering: .relaxed) } }
      try await session.verify(shadow)
    }
    try image.judge(shadow)
  }

  @Test(arguments: ["0.10", "1.1"], [700_001, 2 << 20] as [UInt64])
  func whatIsZeroedHidesTheBackingFileAndWhatIsDiscardedNeverShowsItAgain(
    _ compat: String, _ length: UInt64
  ) throws {
    var random = SeededGenerator(seed: runSeed)
    let scratch = try Scratch()
    try fillRaw(scratch, size: length)
    let image = try DirectedImage(
      "cluster_size=64k,compat=\(compat)", size: (1 << 20) + 1536,
      backing: ("base.raw", "raw", .plain), in: scratch)
    let shadow = try image.shadow()
    try image.perform(
      [
        .write(64 << 10, 128 << 10), .zero(0, 64 << 10), .zero(100_864, 200_192),
        .discard(64 << 10, 64 << 10), .discard(300_032, 200_192), .zero(690_176, 20_480),
        .zero((1 << 20) - 512, 2048), .discard((1 << 20), 1536), .write(130 << 10, 512),
      ], shadow, &random)
    try image.judge(shadow)
  }

  static let pairs = MatrixCase.ciphers.flatMap { top in MatrixCase.ciphers.map { (top, $0) } }

  @Test(arguments: share(of: pairs))
  func eachLayerOfAChainIsEncryptedForItself(
    _ top: MatrixCase.Cipher, _ below: MatrixCase.Cipher
  ) throws {
    var random = SeededGenerator(seed: runSeed)
    let baseScratch = try Scratch()
    let base = try DirectedImage("cluster_size=4k", size: 1 << 20, cipher: below, in: baseScratch)
    try base.disk.io(["write -P 7 0 700k", "write -z 100k 30k"])
    let image = try DirectedImage(
      "cluster_size=64k", size: 1 << 20, cipher: top,
      backing: (base.disk.path, "qcow2", below), in: try Scratch())
    let shadow = try image.shadow()
    try image.perform(
      [
        .write(70_144, 512), .write(200 << 10 + 512, 130 << 10), .zero(64 << 10, 1024),
        .zero(400 << 10, 128 << 10), .discard(512 << 10, 64 << 10), .write(660 << 10, 80 << 10),
      ], shadow, &random)
    try image.judge(shadow)
  }

  @Test(arguments: [false, true])
  func whatWasReadIsThereWithoutTheBackingFile(_ isExtended: Bool) throws {
    var random = SeededGenerator(seed: runSeed)
    let scratch = try Scratch()
    try fillRaw(scratch, size: 3_000_001)
    let size: UInt64 = (4 << 20) + 512
    let image = try DirectedImage(
      "cluster_size=64k" + (isExtended ? ",extended_l2=on" : ""), size: size,
      backing: ("base.raw", "raw", .plain), in: scratch)
    try image.disk.io(["write -P 9 100k 3k", "write -z 300k 90k"])
    let shadow = try image.shadow()
    try image.perform([.write(1 << 20, 5120)], shadow, &random) { $0.copyOnRead = true }
    try image.judge(shadow)
    // All was read: nothing but what lies beyond the backing file is left to it.
    try image.disk.image("rebase", "-u", "-b", "")
    try image.judge(shadow)
    try withImage(image.disk.options(readOnly: true), &random) { try await $0.verify(shadow) }
  }

  /// A raw backing file with no zeros in it.
  private func fillRaw(_ scratch: Scratch, size: UInt64) throws {
    let base = try Shadow(scratch.file("base.raw"), size: size)
    let bytes = (0..<size).map { UInt8(truncatingIfNeeded: $0 / 512 % 255 + 1) }
    try bytes.withUnsafeBytes { try base.write($0, at: 0) }
  }
}
