import BlockCore
import QCOW2Format
import TestSupport
import Testing

@testable import QCOW2Engine

/// Images on hosts whose room ends: metadata has its room before anything that needs it is acknowledged,
/// and reservations fit into what is there.
@Suite struct HostRoomTests {
  private static let cluster = 4096

  /// An image of 4 KiB clusters; the holes of its tables have no storage.
  private func bench(size: Int = 64 << 20) -> Bench {
    var builder = ImageBuilder()
    builder.clusterBits = 12
    builder.size = size
    return Bench(builder, schedule: nil, isImmediate: true)
  }

  private func write(_ image: Image, _ cluster: Int, worker: Int = 0) async -> Errno? {
    let buffer = IOBuffer(count: Self.cluster)
    SectorPattern.fill(buffer.base, change: 3, sector: cluster * 8)
    defer { withExtendedLifetime(buffer) {} }
    return await image.serve(
      BlockRequest(
        .write, offset: GuestOffset(UInt64(cluster * Self.cluster)),
        length: UInt64(Self.cluster), data: buffer.data), worker: worker, slot: 0
    ).errno
  }

  private func isStored(_ bytes: ImageBytes, _ cluster: Int) -> Bool {
    let verifier = ImageVerifier(bytes)
    defer { withExtendedLifetime(verifier) {} }
    return verifier.sector(cluster * 8).map {
      SectorPattern.change(in: $0, sector: cluster * 8) == 3
    } ?? false
  }

  @Test(
    "Each write that is acknowledged can be flushed, however little room there was",
    arguments: [true, false], 0...24)
  func whatIsAcknowledgedIsFlushed(hasFallocate: Bool, room: Int) throws {
    let bench = bench()
    let stored = Box<[Int]>([])
    try bench.host.run {
      let host = SmallHost(bench.memory, hasFallocate: hasFallocate, room: room)
      let image = try await bench.open([host, host], options: ImageOptions())
      // Each in an L2 table of its own, or beside the one before.
      for number in 0..<12 {
        for cluster in [number * 512, number * 512 + 1] where await write(image, cluster) == nil {
          stored.value.append(cluster)
        }
      }
      try await image.flush()
      try await image.close()
      // A table in two blocks at most, the refcount block; then two clusters for a table, or one.
      #expect(stored.value.count >= (room - 3) / 2)
    }
    let report = ImageVerifier(bench.bytes).check()
    #expect(report.errors.isEmpty && report.leaks == 0, "\(report)")
    for cluster in stored.value { #expect(isStored(bench.bytes, cluster)) }
  }

  @Test("A reservation takes what fits, and a single cluster of new room is enough to go on")
  func aReservationTakesWhatFits() throws {
    let bench = bench()
    try bench.host.run {
      let host = SmallHost(bench.memory, hasFallocate: true, room: 40)
      let image = try await bench.open([host, host], options: ImageOptions())
      var next = 0
      while await write(image, next) == nil { next += 1 }
      // The tables, where they were holes, and an L2 table.
      #expect(next >= 40 - 4, "\(next) of 40")
      for _ in 0..<5 {
        #expect(await write(image, next) == .noSpace)
        host.capacity += 1
        #expect(await write(image, next) == nil)
        next += 1
      }
      try await image.flush()
      try await image.close()
    }
    let report = ImageVerifier(bench.bytes).check()
    #expect(report.errors.isEmpty && report.leaks == 0, "\(report)")
  }

  @Test("A worker that finds no room uses what another has reserved", arguments: [true, false])
  func roomOfAnotherWorker(hasFallocate: Bool) throws {
    let bench = bench()
    try bench.host.run {
      let host = SmallHost(bench.memory, hasFallocate: hasFallocate, room: 20)
      var options = ImageOptions()
      options.workers = 2
      let image = try await bench.open([host, host], options: options)
      var next = 0
      while await write(image, next) == nil { next += 1 }
      // The second worker reserves 1, 2, 4 and 8 clusters, and leaves 7 of the last run.
      host.capacity += 15
      for _ in 0..<8 {
        #expect(await write(image, next, worker: 1) == nil)
        next += 1
      }
      for _ in 0..<7 {
        #expect(await write(image, next) == nil)
        next += 1
      }
      #expect(await write(image, next) == .noSpace)
      try await image.flush()
      try await image.close()
    }
    let report = ImageVerifier(bench.bytes).check()
    #expect(report.errors.isEmpty && report.leaks == 0, "\(report)")
  }

  @Test("A table that is a hole gets storage before a new entry is acknowledged")
  func anOldTableGetsStorage() throws {
    let bench = bench()
    try bench.host.run {
      let image = try await bench.open()
      #expect(await write(image, 0) == nil)
      try await image.close()
    }
    // A copy in which the L2 table, all zeros but for an entry, lost its blocks of zeros.
    try bench.host.run {
      let host = SmallHost(bench.memory, hasFallocate: true, room: 3, block: 512)
      let image = try await bench.open([host, host], options: ImageOptions())
      #expect(await write(image, 300) == .noSpace)
      host.capacity += 64
      #expect(await write(image, 300) == nil)
      host.capacity = host.used
      try await image.flush()
      try await image.close()
    }
    #expect(isStored(bench.bytes, 300) && isStored(bench.bytes, 0))
  }

  @Test("A file size limit is a full disk to the guest, and the next write succeeds")
  func aSizeLimitIsNoSpace() throws {
    let bench = bench()
    try bench.host.run {
      let image = try await bench.open()
      #expect(await write(image, 0) == nil)
      bench.faulty.fault = Fault(.write, number: 1, errno: .fileTooBig, isPermanent: true)
      #expect(await write(image, 1) == .noSpace)
      bench.faulty.fault = nil
      #expect(await write(image, 1) == nil)
      try await image.close()
    }
    #expect(ImageVerifier(bench.bytes).check().errors.isEmpty)
  }

  @Test("A clean close leaves the file as long as its clusters in use need")
  func cutAtClose() throws {
    let bench = bench()
    try bench.host.run {
      let image = try await bench.open()
      for cluster in 0..<70 { #expect(await write(image, cluster) == nil) }
      #expect(bench.bytes.length > 64 * Self.cluster)
      let used = image.allocator.room.end
      try await image.close()
      #expect(bench.bytes.length < Int(used.number) * Self.cluster)
    }
    let end = bench.bytes.length
    let report = ImageVerifier(bench.bytes).check()
    #expect(report.errors.isEmpty && report.leaks == 0)
    #expect(bench.bytes.base.load(fromByteOffset: end - Self.cluster, as: UInt32.self) != 0)
    // Data behind the clusters in use is somebody's: it stays.
    bench.bytes.put([1], end + 4 * Self.cluster)
    try bench.host.run {
      let image = try await bench.open()
      #expect(await write(image, 100) == nil)
      try await image.close()
    }
    #expect(bench.bytes.length > end + 4 * Self.cluster)
  }

  @Test("A refcount table that could not grow leaves no cluster that counts as fresh and is not")
  func aTableThatDidNotGrow() throws {
    var builder = ImageBuilder()
    builder.clusterBits = 9
    builder.refcountOrder = 6
    builder.size = 8 << 20
    let bench = Bench(builder, schedule: nil, isImmediate: true)
    try bench.host.run {
      let image = try await bench.open()
      let table = UInt64(image.allocator.refcounts.table.count)
      bench.faulty.fault = Fault(.sync, number: 2, errno: .noSpace)
      await image.allocator.mutex.acquire()
      await #expect(throws: ImageError.self) {
        try await image.allocator.growTable(toCover: table)
      }
      image.allocator.mutex.release()
      let first = Int(table << UInt64(image.geometry.refcountBlockBits))
      let (fresh, length) = (Int(image.allocator.freshFrom.number) * 512, bench.bytes.length)
      #expect(length > first * 512, "the table was written")
      for byte in min(fresh, length)..<length {
        #expect(bench.bytes.base.load(fromByteOffset: byte, as: UInt8.self) == 0)
      }
    }
  }

  @Test("A host that was short is asked for one cluster, then for more with each answer")
  func askedForMoreAgain() {
    var room = HostRoom(tables: [], floor: 0, mayShrink: false)
    room.note(isShort: false)
    #expect(room.mostAtOnce == .max)
    room.note(isShort: true)
    var limits = [room.mostAtOnce]
    for _ in 0..<11 {
      room.note(isShort: false)
      limits.append(room.mostAtOnce)
    }
    #expect(limits == (0...10).map { 1 << UInt64($0) } + [.max])
  }

  @Test("What was reserved and not used has its room back before the close writes anything")
  func unusedRunsGiveTheirRoomBack() throws {
    let bench = bench()
    try bench.host.run {
      let host = SmallHost(bench.memory, hasFallocate: true, room: 400)
      let image = try await bench.open([host, host], options: ImageOptions())
      #expect(await write(image, 0) == nil)
      let used = host.used
      try await image.arenas.returnAll()
      #expect(host.used <= used - 60, "\(host.used) of \(used)")
      try await image.close()
    }
    let report = ImageVerifier(bench.bytes).check()
    #expect(report.errors.isEmpty && report.leaks == 0, "\(report)")
  }

  @Test("Clusters that could not be cleared do not join a run of clusters that were")
  func whatIsNotClearedStaysApart() throws {
    var builder = ImageBuilder()
    builder.clusterBits = 12
    builder.size = 64 << 20
    let bench = Bench(
      builder, schedule: nil, traits: HostFileTraits(isBlockDevice: true), room: 8 << 20,
      isImmediate: true)
    bench.memory.clears = true
    try bench.host.run {
      let image = try await bench.open()
      var kinds: [Bool: Int] = [:]
      for number in 0..<600 {
        if number == 20 { bench.memory.clears = false }
        let run = try await image.arenas.take(upTo: 1, worker: 0)
        kinds[run.isFresh, default: 0] += 1
        let byte = bench.bytes.base.load(
          fromByteOffset: Int(run.start.number) * Self.cluster, as: UInt8.self)
        #expect(byte == 0 || !run.isFresh, "cluster \(run.start.number)")
      }
      #expect(kinds[true, default: 0] > 20 && kinds[false, default: 0] > 20, "\(kinds)")
    }
  }

  @Test("A request that was to fetch the next run and needed no cluster does not end the fetching")
  func anotherRequestFetches() throws {
    let bench = bench()
    try bench.host.run {
      let image = try await bench.open()
      let arenas = image.arenas
      _ = try await arenas.take(upTo: 1, worker: 0)
      var asked = 0
      for _ in 0..<180 where arenas.takeNow(exactly: 1, fresh: false, worker: 0) == nil {
        asked += 1
      }
      #expect(asked > 1 && asked < 8, "\(asked)")
      try await image.close()
    }
  }
}

/// A regular file on a file system with little room, counted in blocks; zeros take none unless asked for.
private final class SmallHost: ForwardingFile, @unchecked Sendable {  // why: one thread
  let file: any HostFile
  private let hasFallocate: Bool
  private let block: Int
  private var allocated: Set<Int> = []
  /// The blocks that there are.
  var capacity: Int
  var used: Int { allocated.count }

  /// What the file holds has storage where it is not zeros; `room` blocks are free.
  init(_ memory: MemoryFile, hasFallocate: Bool, room: Int, block: Int = 4096) {
    file = memory
    self.hasFallocate = hasFallocate
    self.block = block
    capacity = 0
    let bytes = memory.bytes
    for number in 0..<(bytes.length + block - 1) / block {
      let end = min((number + 1) * block, bytes.length)
      let isZero = (number * block..<end).allSatisfy {
        bytes.base.load(fromByteOffset: $0, as: UInt8.self) == 0
      }
      if !isZero { allocated.insert(number) }
    }
    capacity = allocated.count + room
  }

  private func blocks(_ offset: HostOffset, _ length: Int) -> Range<Int> {
    let start = Int(offset.bytes)
    return start / block..<(start + length + block - 1) / block
  }

  private func take(_ offset: HostOffset, _ length: Int) throws(Errno) {
    let new = blocks(offset, length).filter { !allocated.contains($0) }
    if allocated.count + new.count > capacity { throw .noSpace }
    allocated.formUnion(new)
  }

  func write(from buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    try take(offset, buffer.count)
    try await file.write(from: buffer, at: offset)
  }

  func allocateZeroes(at offset: HostOffset, length: UInt64) async throws(Errno) {
    try take(offset, Int(length))
    try await file.writeZeroes(at: offset, length: length)
  }

  func allocateHoles(at offset: HostOffset, length: UInt64) async throws(Errno) -> Bool {
    if hasFallocate { try take(offset, Int(length)) }
    return hasFallocate
  }

  func fillHoles(at offset: HostOffset, length: UInt64) async throws(Errno) {
    try take(offset, Int(length))
  }

  func reserve(at offset: HostOffset, length: UInt64) async throws(Errno) -> Reservation {
    if hasFallocate {
      do { try take(offset, Int(length)) } catch { return .short }
    }
    try await file.extend(to: offset.bytes + length)
    return hasFallocate ? .stored : .extended
  }

  func punchHole(at offset: HostOffset, length: UInt64) async throws(Errno) {
    try await file.punchHole(at: offset, length: length)
    allocated.subtract(blocks(offset, Int(length)))
  }

  func setLength(_ length: UInt64) async throws(Errno) {
    try await file.setLength(length)
    allocated = allocated.filter { $0 * block < Int(length) }
  }
}
