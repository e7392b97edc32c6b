import BlockCore
import QCOW2Engine
import TestSupport
import Testing

/// Images on block devices, which do not grow by themselves, when they are full.
@Suite struct NoSpaceTests {
  private static let cluster = 4096

  /// An image of 4 KiB clusters on a device that has room for `clusters` more than it uses.
  private func bench(clusters: Int, workers: Int = 1) -> Bench {
    var builder = ImageBuilder()
    builder.clusterBits = 12
    builder.size = 1 << 20
    let bench = Bench(
      builder, schedule: nil, traits: HostFileTraits(isBlockDevice: true), isImmediate: true)
    bench.bytes.setLength(bench.bytes.length + clusters * Self.cluster)
    bench.options.workers = workers
    return bench
  }

  private func write(_ image: Image, _ cluster: Int, worker: Int = 0) async -> Errno? {
    let buffer = IOBuffer(count: Self.cluster)
    buffer.base.initializeMemory(
      as: UInt8.self, repeating: UInt8(truncatingIfNeeded: cluster), count: buffer.count)
    defer { withExtendedLifetime(buffer) {} }
    return await image.serve(
      BlockRequest(
        .write, offset: GuestOffset(UInt64(cluster * Self.cluster)),
        length: UInt64(Self.cluster), data: buffer.data), worker: worker, slot: 0
    ).errno
  }

  private func discard(_ image: Image, _ cluster: Int) async -> Errno? {
    await image.serve(
      BlockRequest(
        .discard, offset: GuestOffset(UInt64(cluster * Self.cluster)),
        length: UInt64(Self.cluster)), worker: 0, slot: 0
    ).errno
  }

  @Test("A full device gives ENOSPC, and what was written before stays")
  func aFullDeviceGivesENOSPC() throws {
    let bench = bench(clusters: 5)
    try bench.host.run {
      let image = try await bench.open()
      // One of the five becomes the L2 table.
      for cluster in 0..<4 { #expect(await write(image, cluster) == nil) }
      #expect(await write(image, 4) == .noSpace)
      #expect(await write(image, 3) == nil)
      try await image.close()
    }
    #expect(ImageVerifier(bench.bytes).check().errors.isEmpty)
  }

  @Test("A quota of the host's is a full disk to the guest, and the next write succeeds")
  func aQuotaIsNoSpace() throws {
    let bench = Bench(ImageBuilder(), schedule: nil)
    try bench.host.run {
      let image = try await bench.open()
      bench.faulty.fault = Fault(.write, number: 1, errno: .quota, isPermanent: true)
      #expect(await write(image, 0) == .noSpace)
      bench.faulty.fault = nil
      #expect(await write(image, 0) == nil)
      try await image.close()
    }
    #expect(ImageVerifier(bench.bytes).check().errors.isEmpty)
  }

  @Test("What a discard freed is used before a request fails for want of space")
  func discardedSpaceIsReclaimedBeforeENOSPC() throws {
    let bench = bench(clusters: 5)
    try bench.host.run {
      let image = try await bench.open()
      for cluster in 0..<4 { #expect(await write(image, cluster) == nil) }
      #expect(await discard(image, 1) == nil)
      #expect(await write(image, 9) == nil)
      #expect(await write(image, 10) == .noSpace)
      try await image.close()
    }
    #expect(ImageVerifier(bench.bytes).check().errors.isEmpty)
  }

  @Test("On a full host file system, too, discarded space is used before a request fails")
  func discardedSpaceIsReclaimedOnAFullHost() throws {
    var builder = ImageBuilder()
    builder.clusterBits = 12
    builder.size = 256 << 20
    let bench = Bench(builder, schedule: nil, isImmediate: true)
    try bench.host.run {
      let file = FullFile(bench.file)
      let image = try await bench.open([file, file], options: ImageOptions())
      #expect(await write(image, 0) == nil)
      file.limit = UInt64(bench.bytes.length)
      var next = 1
      while next < 60_000, await write(image, next) == nil { next += 1 }
      #expect(next < 60_000)
      #expect(await discard(image, 0) == nil)
      #expect(await write(image, next) == nil)
      #expect(await write(image, next + 1) == .noSpace)
      try await image.close()
    }
    #expect(ImageVerifier(bench.bytes).check().errors.isEmpty)
  }

  @Test("The last clusters serve any worker, whoever reserved them")
  func theLastClustersServeAnyWorker() throws {
    let bench = bench(clusters: 5, workers: 2)
    try bench.host.run {
      let image = try await bench.open()
      #expect(await write(image, 0, worker: 0) == nil)
      for cluster in 1..<4 { #expect(await write(image, cluster, worker: 1) == nil) }
      #expect(await write(image, 4, worker: 1) == .noSpace)
      try await image.close()
    }
    let report = ImageVerifier(bench.bytes).check()
    #expect(report.errors.isEmpty && report.leaks == 0)
  }

  @Test("A device that has grown is used to its new end")
  func aDeviceThatHasGrownIsUsed() throws {
    let bench = bench(clusters: 2)
    try bench.host.run {
      let image = try await bench.open()
      #expect(await write(image, 0) == nil)
      #expect(await write(image, 1) == .noSpace)
      bench.bytes.setLength(bench.bytes.length + Self.cluster)
      #expect(await write(image, 1) == nil)
      #expect(await write(image, 2) == .noSpace)
      try await image.close()
    }
    #expect(ImageVerifier(bench.bytes).check().errors.isEmpty)
  }
}

/// A regular file on a file system that is full.
private final class FullFile: ForwardingFile, @unchecked Sendable {  // why: one thread
  let file: any HostFile
  /// Where space ends; all the file may have.
  var limit = UInt64.max

  init(_ file: any HostFile) { self.file = file }

  private func require(_ end: UInt64) throws(Errno) { if end > limit { throw .noSpace } }

  func write(from buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    try require(offset.bytes + UInt64(buffer.count))
    try await file.write(from: buffer, at: offset)
  }

  func writeZeroes(at offset: HostOffset, length: UInt64) async throws(Errno) {
    try require(offset.bytes + length)
    try await file.writeZeroes(at: offset, length: length)
  }

  func setLength(_ length: UInt64) async throws(Errno) {
    try require(length)
    try await file.setLength(length)
  }

  func extend(to length: UInt64) async throws(Errno) {
    try require(length)
    try await file.extend(to: length)
  }

  func allocateZeroes(at offset: HostOffset, length: UInt64) async throws(Errno) {
    try await writeZeroes(at: offset, length: length)
  }

  func reserve(at offset: HostOffset, length: UInt64) async throws(Errno) -> Reservation {
    if offset.bytes + length > limit { return .short }
    return try await file.reserve(at: offset, length: length)
  }
}
