import BlockCore
import QCOW2Format
import TestSupport
import Testing

@testable import QCOW2Engine

/// A reservation ends, with clusters or with an error, whatever the image and its host are like.
@Suite(.timeLimit(.minutes(2))) struct ReservationEndsTests {
  private static let shapes = [(9, 6), (9, 0), (12, 4), (16, 4), (16, 6), (21, 4)]
  private static let lengths: [UInt64] = [
    1 << 30, 1 << 40, 1 << 48, 1 << 52, 1 << 55, (1 << 56) - 512, 1 << 56, 1 << 62,
    UInt64(Int64.max),
  ]

  private func builder(_ clusterBits: Int, _ order: Int) -> ImageBuilder {
    var builder = ImageBuilder()
    builder.clusterBits = clusterBits
    builder.refcountOrder = order
    builder.size = 4 << 20
    return builder
  }

  @Test(
    "The length of a sparse host file cannot make a reservation endless", arguments: shapes,
    [false, true])
  func anyLength(_ shape: (Int, Int), isDevice: Bool) async throws {
    for length in Self.lengths {
      let bytes = builder(shape.0, shape.1).build(capacity: 1 << 28)
      let file = VastFile(bytes, length: length, isDevice: isDevice)
      let image = try await Image.open(file, options: ImageOptions())
      // What the refcounts say is free inside of the file goes first.
      var seen = Set<HostCluster>()
      for _ in 0..<3 {
        for start in [image.allocator.cursor, HostCluster(length >> UInt64(shape.0))] {
          image.allocator.cursor = start
          do {
            let run = try await image.allocator.reserve(upTo: 16)
            #expect(run.count > 0 && run.end.number <= (1 << 56) >> UInt64(shape.0))
            #expect(seen.isDisjoint(with: run.start..<run.end), "\(run) was handed out before")
            seen.formUnion(run.start..<run.end)
          } catch {
            guard case .noSpace = error else { throw error }
          }
        }
      }
      #expect(file.writes < 4096, "\(file.writes) writes at length \(length)")
    }
  }

  @Test(
    "Contiguous reservations end, too, and make the table grow once for each", arguments: shapes)
  func contiguous(_ shape: (Int, Int)) async throws {
    for length in Self.lengths {
      let bytes = builder(shape.0, shape.1).build(capacity: 1 << 28)
      let image = try await Image.open(
        VastFile(bytes, length: length, isDevice: false), options: ImageOptions())
      for count in [1, 100, image.geometry.refcountBlockEntries + 1] where count < 1 << 16 {
        do {
          let run = try await image.allocator.reserveContiguous(count)
          #expect(run.count == count)
        } catch {
          guard case .noSpace = error else { throw error }
        }
      }
    }
  }

  @Test("A refcount table that is all blocks of ones lets a reservation end behind them")
  func nothingIsFree() async throws {
    // One-bit refcounts in 512 bytes: a block counts 4096 clusters.
    var builder = builder(9, 0)
    builder.mappings = [0: .data]
    let bytes = builder.build(capacity: 1 << 28)
    let table = Int(bytes.be64(48))
    // Blocks behind the file's end, one after the other, each of them full.
    let first = (bytes.length + 511) / 512
    for index in 1..<64 {
      let block = (first + index) * 512
      bytes.fill(0xff, count: 512, at: block)
      bytes.put64(UInt64(block), table + index * 8)
    }
    bytes.fill(0xff, count: 512, at: Int(bytes.be64(table)))
    let file = VastFile(bytes, length: UInt64(bytes.length), isDevice: false)
    let image = try await Image.open(file, options: ImageOptions())
    let run = try await image.allocator.reserve(upTo: 8)
    #expect(run.start.number > 64 * 4096 && run.isFresh)
  }

  @Test(
    "A host that is full from any operation on ends a reservation, and the next one has room",
    arguments: [Fault.Kind.write, .zero, .resize])
  func aFullHost(kind: Fault.Kind) throws {
    for number in 1..<40 {
      let bench = Bench(ImageShape.nearGrowth.builder, schedule: nil, isImmediate: true)
      let hasFailed = Box(false)
      try bench.host.run {
        let image = try await bench.open()
        // The table must grow for this.
        let table = image.allocator.refcounts.table.count
        image.allocator.cursor =
          image.geometry.clusters(ofRefcountBlock: UInt64(table)).lowerBound
        image.allocator.freshFrom = max(image.allocator.freshFrom, image.allocator.cursor)
        bench.faulty.fault = Fault(kind, number: number, errno: .noSpace, isPermanent: true)
        do { _ = try await image.allocator.reserve(upTo: 8) } catch {
          #expect((error as? ImageError)?.errno == .noSpace, "\(error)")
          hasFailed.value = true
        }
        bench.faulty.fault = nil
        let run = try await image.allocator.reserve(upTo: 8)
        #expect(run.count > 0)
        #expect(image.allocator.refcounts.table.count > table, "the table did not grow")
        try await image.close()
      }
      let report = ImageVerifier(bench.bytes).check()
      #expect(report.errors.isEmpty, "\(report.errors.prefix(3))")
      if !hasFailed.value { return }
    }
    Issue.record("no operation was the last")
  }
}

/// Bytes at the start of a file of any length; writes behind them vanish, and what is there are zeros.
private final class VastFile: HostFile, @unchecked Sendable {  // why: one task
  private let bytes: ImageBytes
  private var end: UInt64
  private var beyond: [UInt64: [UInt64]] = [:]
  let traits: HostFileTraits
  private(set) var writes = 0
  private static let capacity: UInt64 = 1 << 28

  init(_ bytes: ImageBytes, length: UInt64, isDevice: Bool) {
    self.bytes = bytes
    end = max(length, UInt64(bytes.length))
    traits = HostFileTraits(isBlockDevice: isDevice)
  }

  func read(into buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    guard let memory = buffer.memory else { throw .invalid }
    memory.initializeMemory(as: UInt8.self, repeating: 0, count: buffer.count)
    if offset.bytes + UInt64(buffer.count) <= Self.capacity {
      bytes.read(into: memory, count: buffer.count, at: Int(offset.bytes))
      return
    }
    for sector in stride(from: 0, to: buffer.count, by: 512) {
      guard let words = beyond[offset.bytes + UInt64(sector)] else { continue }
      for (index, word) in words.enumerated() { memory.storeBE64(word, sector + index * 8) }
    }
  }

  func write(from buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    guard let memory = buffer.memory else { throw .invalid }
    if traits.isBlockDevice && offset.bytes + UInt64(buffer.count) > end { throw .noSpace }
    writes += 1
    end = max(end, offset.bytes + UInt64(buffer.count))
    if offset.bytes + UInt64(buffer.count) <= Self.capacity {
      bytes.write(memory, count: buffer.count, at: Int(offset.bytes))
      return
    }
    for sector in stride(from: 0, to: buffer.count, by: 512) {
      let words = (0..<64).map { memory.be64(sector + $0 * 8) }
      if words.contains(where: { $0 != 0 }) { beyond[offset.bytes + UInt64(sector)] = words }
    }
  }

  func writeZeroes(at offset: HostOffset, length: UInt64) async throws(Errno) {
    writes += 1
    end = max(end, offset.bytes + length)
    if offset.bytes + length <= Self.capacity {
      bytes.fill(0, count: Int(length), at: Int(offset.bytes))
    }
    for sector in stride(from: 0, to: length, by: 512) { beyond[offset.bytes + sector] = nil }
  }

  func punchHole(at offset: HostOffset, length: UInt64) async throws(Errno) {}
  func sync() async throws(Errno) {}
  func length() async throws(Errno) -> UInt64 { end }
  func setLength(_ length: UInt64) async throws(Errno) { end = length }
  func extend(to length: UInt64) async throws(Errno) { end = max(end, length) }
}
