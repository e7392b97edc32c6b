import BlockCore
import QCOW2Format
import TestSupport
import Testing

@testable import QCOW2Engine

/// Discards as the way out of a full thin volume.
@Suite struct FullHostDiscardTests {
  private static let cluster = 4096
  private static let perTable = 512

  private func bench(room: Int = 0, _ change: (inout ImageBuilder) -> Void = { _ in }) -> Bench {
    var builder = ImageBuilder()
    builder.clusterBits = 12
    builder.size = 16 << 20
    for table in 0..<2 {
      for cluster in 0..<8 { builder.mappings[table * Self.perTable + cluster] = .data }
    }
    change(&builder)
    let bench = Bench(
      builder, schedule: nil, traits: HostFileTraits(isBlockDevice: true), room: room,
      isImmediate: true)
    bench.options.cacheBytes = 4096
    bench.options.dirtyAgeMilliseconds = 1_000_000
    return bench
  }

  private func serve(
    _ image: Image, _ operation: BlockOperation, _ cluster: Int, count: Int = 1
  ) async -> Errno? {
    let buffer = IOBuffer(count: count * Self.cluster)
    buffer.base.initializeMemory(as: UInt8.self, repeating: 0x77, count: buffer.count)
    defer { withExtendedLifetime(buffer) {} }
    return await image.serve(
      BlockRequest(
        operation, offset: GuestOffset(UInt64(cluster * Self.cluster)),
        length: UInt64(buffer.count), data: operation == .write ? buffer.data : .none),
      worker: 0, slot: 0
    ).errno
  }

  @Test(
    "A discard lets the host have the data before the tables that need room",
    arguments: [false, true])
  func aDiscardMakesRoom(isCached: Bool) throws {
    let bench = bench(room: 4 << 20)
    try bench.host.run {
      let thin = ThinFile(bench.files[0], unit: Self.cluster)
      let image = try await bench.open([thin] + bench.files[1...], options: bench.options)
      thin.mapAll(upTo: bench.original.length - (4 << 20))
      thin.room = 30
      var next = 16
      while next < 400, await self.serve(image, .write, next) == nil { next += 1 }
      #expect(next > 30 && next < 200, "\(next)")
      // The round that looked for room has left nothing to write back.
      thin.room = 1
      #expect(await self.serve(image, .write, next) == nil)
      // The table's own place is taken away, as if it were new or had been in a snapshot of the volume.
      let first = image.tables.l1.load(0) & 0x00ff_ffff_ffff_fe00
      thin.unmap(Int(first))
      #expect(await self.serve(image, .flush, 0, count: 0) == .noSpace)
      let target = isCached ? 0 : Self.perTable
      #expect(await self.serve(image, .discard, target, count: 8) == nil)
      #expect(await self.serve(image, .flush, 0, count: 0) == nil)
      #expect(await self.serve(image, .write, 300) == nil)
      thin.room = .max
      try await image.close()
    }
    let verifier = bench.verifier()
    let report = verifier.check()
    #expect(report.errors.isEmpty && report.leaks == 0, "\(report)")
  }

  @Test("A discard that would need a cluster of a full device leaves the data, and does not fail")
  func aDiscardNeedsNoRoom() throws {
    let bench = bench { $0.hasSnapshot = true }
    try bench.host.run {
      let image = try await bench.open()
      #expect(await self.serve(image, .write, 0) == .noSpace)
      #expect(await self.serve(image, .discard, 0, count: 8) == nil)
      try await image.close()
    }
    let report = bench.verifier().check()
    #expect(report.errors.isEmpty && report.leaks == 0, "\(report)")
    #expect(bench.snapshotProblems(bench.verifier()).isEmpty)
  }

  @Test("WRITE_ZEROES of what reads as zeros needs no table on a full device")
  func zeroesNeedNoTable() throws {
    let bench = bench()
    try bench.host.run {
      let image = try await bench.open()
      #expect(await self.serve(image, .write, 3 * Self.perTable) == .noSpace)
      #expect(await self.serve(image, .writeZeroes, 3 * Self.perTable, count: 8) == nil)
      try await image.close()
    }
    let report = bench.verifier().check()
    #expect(report.errors.isEmpty && report.leaks == 0, "\(report)")
  }
}

/// A thin volume: what was never written, or was punched, has no room yet.
private final class ThinFile: ForwardingFile, @unchecked Sendable {  // why: one thread
  let file: any HostFile
  private let unit: Int
  private var mapped: Set<Int> = []
  /// Units that can still be had.
  var room = Int.max

  init(_ file: any HostFile, unit: Int) {
    self.file = file
    self.unit = unit
  }

  func mapAll(upTo length: Int) { mapped.formUnion(0..<((length + unit - 1) / unit)) }

  func unmap(_ offset: Int) { mapped.remove(offset / unit) }

  private func units(_ offset: HostOffset, _ length: UInt64) -> ClosedRange<Int> {
    Int(offset.bytes) / unit...(Int(offset.bytes + length) - 1) / unit
  }

  func write(from buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    for number in units(offset, UInt64(buffer.count)) where !mapped.contains(number) {
      if room == 0 { throw .noSpace }
      if room != .max { room -= 1 }
      mapped.insert(number)
    }
    try await file.write(from: buffer, at: offset)
  }

  func punchHole(at offset: HostOffset, length: UInt64) async throws(Errno) {
    for number in units(offset, length) where mapped.remove(number) != nil && room != .max {
      room += 1
    }
    try await file.punchHole(at: offset, length: length)
  }
}
