import BlockCore
import TestSupport
import Testing

@testable import QCOW2Engine

/// How many host reads one READ is, and how many of them run at once.
@Suite struct ReadBatchTests {
  private static let mebibyte = 1 << 20

  private func open(_ file: SyntheticImage, readOnly: Bool = true) async throws -> Image {
    var options = ImageOptions()
    options.readOnly = readOnly
    return try await Image.open(file, options: options)
  }

  private func request(
    _ offset: UInt64, _ buffer: IOBuffer, _ operation: BlockOperation = .read
  ) -> BlockRequest {
    BlockRequest(
      operation, offset: GuestOffset(offset), length: UInt64(buffer.count), data: buffer.data)
  }

  /// The first sector that does not hold its own number.
  private func wrongSector(_ offset: UInt64, _ buffer: IOBuffer) -> Int? {
    (0..<(buffer.count / 512)).first { sector in
      let found = (buffer.base + sector * 512).loadUnaligned(as: UInt64.self).bigEndian
      return found != offset / 512 + UInt64(sector)
    }
  }

  @Test("1 MiB in contiguous clusters is one host read, also across slices and tables")
  func contiguousClustersAreOneRead() throws {
    let host = SimulatedHost(seed: 5)
    let file = SyntheticImage(size: 4 << 30, host: host)
    try host.run {
      let image = try await self.open(file, readOnly: false)
      let plan = UnsafeMutableBufferPointer<HostTransfer>.allocate(capacity: 32)
      defer { plan.deallocate() }
      // Inside a slice, across two slices, across two tables.
      let offsets: [UInt64] = [3 << 20, 32 << 20 - 512 << 10, 512 << 20 - 512 << 10]
      for offset in offsets {
        let buffer = IOBuffer(count: Self.mebibyte)
        file.resetCounts()
        #expect(await image.serve(self.request(offset, buffer), worker: 0, slot: 0) == .done)
        #expect(file.reads(.data) == 1)
        #expect(file.bytes(.data) == UInt64(Self.mebibyte))
        #expect(self.wrongSector(offset, buffer) == nil)
        for operation in [BlockOperation.read, .write] {
          let result = image.plan(
            self.request(offset, buffer, operation), worker: 0, slot: 0, into: plan)
          guard case .transfers(let count) = result else {
            Issue.record("\(operation) at \(offset) is not for the hit path")
            continue
          }
          _ = image.finish(worker: 0, slot: 0, failed: false)
          #expect(count == 1)
        }
        withExtendedLifetime(buffer) {}
      }
    }
  }

  @Test("The extents of one READ are read at once, and land where they belong", arguments: 1...8)
  func extentsAreReadAtOnce(seed: Int) throws {
    let host = SimulatedHost(seed: seed == 1 ? nil : UInt64(seed))
    let file = SyntheticImage(size: 4 << 30, host: host)
    file.scramble = 1
    try host.run {
      let image = try await self.open(file)
      let offset = UInt64(32 << 20 - 320 << 10)
      let buffer = IOBuffer(count: Self.mebibyte)
      #expect(await image.serve(self.request(offset, buffer), worker: 0, slot: 0) == .done)
      #expect(file.reads(.data) == 16)
      #expect(seed > 1 || file.depth(.data) == 16)
      #expect(self.wrongSector(offset, buffer) == nil)
      // More extents than one request may have in flight.
      let large = IOBuffer(count: 8 << 20)
      file.resetCounts()
      #expect(await image.serve(self.request(offset, large), worker: 0, slot: 0) == .done)
      #expect(file.reads(.data) == 128)
      #expect(file.depth(.data) <= ReadBatch.capacity)
      #expect(self.wrongSector(offset, large) == nil)
      withExtendedLifetime((buffer, large)) {}
    }
  }

  @Test("Of several extents that cannot be read, the first one in the guest's order is reported")
  func theFirstFailureIsReported() throws {
    let host = SimulatedHost(seed: 9)
    let file = SyntheticImage(size: 1 << 30, host: host)
    file.scramble = 1
    file.badData = [file.dataOffset + 6 << 16, file.dataOffset + 2 << 16]
    try host.run {
      let image = try await self.open(file)
      let buffer = IOBuffer(count: Self.mebibyte)
      let failure = await self.failure(image, self.request(0, buffer))
      guard case .io(.read, let at, .io) = failure else {
        Issue.record("no read error: \(String(describing: failure))")
        return
      }
      // Guest cluster 3 lies in data cluster 2.
      #expect(at.bytes == file.dataOffset + 2 << 16)
      withExtendedLifetime(buffer) {}
    }
  }

  private func failure(_ image: Image, _ request: BlockRequest) async -> ImageError? {
    do throws(ImageError) { try await image.reader.read(request, worker: 0) } catch { return error }
    return nil
  }

  @Test("Without an executor of its own a READ is right all the same")
  func withoutAnExecutor() async throws {
    let file = SyntheticImage(size: 1 << 30)
    file.scramble = 1
    let image = try await open(file)
    let buffer = IOBuffer(count: Self.mebibyte)
    #expect(await image.serve(request(1 << 20, buffer), worker: 0, slot: 0) == .done)
    #expect(wrongSector(1 << 20, buffer) == nil)
    withExtendedLifetime(buffer) {}
  }

  @Test("Requests for one compressed cluster at the same time inflate it once")
  func aCompressedClusterIsInflatedOnce() throws {
    var builder = ImageBuilder()
    builder.clusterBits = 16
    builder.size = 4 << 20
    builder.mappings = [3: .compressed, 4: .compressed]
    let bench = Bench(builder, schedule: nil)
    bench.options.slotsPerWorker = 64
    try bench.host.run {
      let image = try await bench.open()
      let warm = IOBuffer(count: 512)
      #expect(
        await image.serve(self.request(0, warm), worker: 0, slot: 0) == .done)
      let before = bench.faulty.counts[.read, default: 0]
      await withTaskGroup(of: Void.self) { group in
        for slot in 0..<64 {
          group.addTask {
            let buffer = IOBuffer(count: 4096)
            let offset = UInt64(3 << 16 + slot % 32 * 4096)
            #expect(
              await image.serve(self.request(offset, buffer), worker: 0, slot: slot) == .done)
            for sector in 0..<8 {
              let number = Int(offset / 512) + sector
              #expect(
                SectorPattern.change(in: buffer.base + sector * 512, sector: number) != nil)
            }
            withExtendedLifetime(buffer) {}
          }
        }
      }
      // Two clusters, and the slice that maps them.
      #expect(bench.faulty.counts[.read, default: 0] - before <= 3)
      try await image.close()
    }
    #expect(bench.problems() == [])
  }
}
