import BlockCore
import Glibc
import QCOW2Engine
import QCOW2Format
import TestSupport
import TestTools
import Testing

/// Real threads on one image.
///
/// Also the test for the thread sanitizer: `swift test --sanitize=thread --filter Concurrency`.
@Suite(.serialized) struct ConcurrencyTests {
  @Test(
    "Four threads share clusters, slices and the allocator without losing a write",
    arguments: [9, 12], [false, true])
  func fourThreadsLoseNothing(clusterBits: Int, hasTinyCache: Bool) async throws {
    let seed = testSeed("threads")
    let builder = ThreadRun.builder(clusterBits: clusterBits, hasSnapshot: clusterBits == 12)
    let file = MemoryFile(builder.build(capacity: 1 << 26))
    file.yields = true
    var options = ThreadRun.options()
    if hasTinyCache { options.cacheBytes = 2 * min(1 << clusterBits, 4096) }
    let image = try await Image.open(file, options: options)
    let clients = await run(image, [file], seed: seed)
    ThreadRun.expectSound(ImageVerifier(file.bytes), clients)
  }

  /// Shapes in which workers have contexts, codecs and layers to get in each other's way with.
  static let shapes: [ImageShape] = [
    ImageShape.compressing[1], ImageShape.compressing[3], ImageShape.compressed[3],
    ImageShape.extended[2], ImageShape.externalData[4], ImageShape.ciphered[2],
    ImageShape.ciphered[3], ImageShape.copyingOnRead[1], ImageShape.copyingOnRead[2],
    ImageShape.copyingOnRead[3],
  ]

  @Test("Four threads lose nothing whatever the image is made of", arguments: shapes)
  func fourThreadsLoseNothingInAnyShape(shape: ImageShape) async throws {
    let seed = testSeed("threads")
    let bench = ThreadRun.bench(shape)
    let contents = bench.originals.map { $0.copy() }
    let files = bench.immediateFiles(contents, yields: true)
    let image = try await bench.open(files, options: bench.options)
    let clients = await run(image, files, seed: seed)
    ThreadRun.expectSound(bench.verifier(contents), clients)
  }

  @Test(
    "Three workers lose nothing while the disk grows under them, again and again",
    arguments: [9, 12])
  func threeWorkersLoseNothingWhileTheDiskGrows(clusterBits: Int) async throws {
    let seed = testSeed("growing threads")
    var builder = ThreadRun.builder(clusterBits: clusterBits, hasSnapshot: clusterBits == 12)
    // A part of a sector is left at the end, and the first L2 table ends soon.
    builder.size = (clusterBits == 9 ? 60 << 10 : 1 << 20) + 512
    let file = MemoryFile(builder.build(capacity: 1 << 27))
    file.yields = true
    let image = try await Image.open(file, options: ThreadRun.options(workers: 3))
    let growths = Guarded(0)
    let clients = (0..<12).map { number in
      ThreadClient(
        image: image, files: [file], number: number, seed: seed, growsWith: 3, growths: growths)
    }
    await ThreadRun.run(clients, on: image, workers: 3, times: 8) { isOver in
      await Self.grow(
        image, by: clusterBits == 9 ? 19 << 10 : 700 << 10, until: isOver, growths)
    }
    let size = image.size
    print("growing threads: \(growths.withLock { $0 }) growths, to \(size) bytes")
    #expect(growths.withLock { $0 } >= ThreadClient.growthsAwaited)
    #expect(clients.allSatisfy { $0.isBeyond(UInt64(builder.size)) }, "nobody used what was added")
    #expect(file.bytes.be64(24) == size)
    ThreadRun.expectSound(ImageVerifier(file.bytes), clients)
  }

  /// Makes the disk larger every few milliseconds, up to eighty times, and counts how often.
  private static func grow(
    _ image: Image, by step: UInt64, until isOver: Guarded<Bool>, _ growths: Guarded<Int>
  ) async {
    while growths.withLock({ $0 }) < 80 && !isOver.withLock({ $0 }) {
      do { try await image.resize(to: image.size + step) } catch {
        Issue.record("resize \(growths.withLock { $0 }): \(error)")
        // Nobody shall wait for more.
        return growths.withLock { $0 = .max }
      }
      growths.withLock { $0 += 1 }
      usleep(5000)
    }
  }

  /// Runs sixteen clients on four threads, then closes the image.
  private func run(
    _ image: Image, _ files: [any HostFile], seed: UInt64
  ) async -> [ThreadClient] {
    let clients = (0..<16).map { number in
      ThreadClient(image: image, files: files, number: number, seed: seed)
    }
    await ThreadRun.run(clients, on: image)
    return clients
  }
}

/// One client with sectors of its own.
///
/// They are every 16th of the first half of the disk, so that clusters are shared; and whole
/// clusters in the second half, where it also discards. On a disk that grows, halves are of each
/// run of 32 clusters.
final class ThreadClient: @unchecked Sendable {  // why: used by one task, then by the test
  private let image: Image
  private let driver: MiniWorker
  private let number: Int
  /// The bytes of the disk that the client works on.
  private var size: UInt64
  /// How often the disk has grown; then its size is looked at again before each step.
  private let growths: Guarded<Int>?
  /// The growths that the steps of a client are spread over, however fast either goes.
  static let growthsAwaited = 10
  private var random: SeededGenerator
  private var expected: [Int: UInt32] = [:]
  private var stamp: UInt32
  private(set) var problems: [String] = []

  convenience init(image: Image, file: any HostFile, number: Int, seed: UInt64) {
    self.init(image: image, files: [file], number: number, seed: seed)
  }

  /// The disk grows, served by `workers`, if that is not nil; somebody counts how often.
  init(
    image: Image, files: [any HostFile], number: Int, seed: UInt64, growsWith workers: Int? = nil,
    growths: Guarded<Int>? = nil
  ) {
    self.image = image
    self.number = number
    size = image.size
    self.growths = growths
    slot = number / (workers ?? 4)
    driver = MiniWorker(target: image, files: files, worker: number % (workers ?? 4))
    random = SeededGenerator(seed: seed &* 100 &+ UInt64(number))
    stamp = UInt32(number) << 20
  }

  private let slot: Int
  private var grows: Bool { growths != nil }
  private var perCluster: Int { Int(image.geometry.clusterSize) / 512 }

  func run(operations: Int) async {
    for step in 0..<operations where problems.isEmpty {
      await awaitGrowth(step * (Self.growthsAwaited + 2) / operations)
      if grows { size = image.size }
      switch random.below(10) {
      case 0: await perform(BlockRequest(.flush))
      case 1, 2, 3: await check()
      case 4, 5: await changeCluster()
      case 6: await readAnywhere()
      default: await write(sharedSector())
      }
      if step % 7 == 0 { await image.maintain() }
    }
    for sector in expected.keys.sorted() { await read(sector) }
  }

  /// Waits until the disk has grown `count` times, or as often as any client waits for.
  private func awaitGrowth(_ count: Int) async {
    guard let growths else { return }
    while growths.withLock({ $0 }) < min(count, Self.growthsAwaited) {
      usleep(100)
      await Task.yield()
    }
  }

  private func perform(_ request: BlockRequest) async {
    let plans = random.chance(70)
    if let errno = await driver.perform(request, slot: slot, plans: plans) {
      problems.append("\(request.operation): errno \(errno.code)")
    }
  }

  /// Whether it has written at or behind a byte of the disk.
  func isBeyond(_ offset: UInt64) -> Bool {
    expected.keys.contains { UInt64($0) * 512 >= offset }
  }

  private func sharedSector() -> Range<Int> {
    if grows {
      let first = run() * perCluster
      let sector = first + random.below(perCluster) * 16 + number
      return sector..<(sector + 1)
    }
    let groups = Int(size) / 512 / 32
    let sector = random.below(groups) * 16 + number
    return sector..<(sector + 1)
  }

  /// The first cluster of a run of 32 that lies wholly on the disk.
  private func run() -> Int { random.below(Int(size) / 512 / perCluster / 32) * 32 }

  private func ownCluster() -> Range<Int> {
    if grows {
      let cluster = run() + 16 + number
      return (cluster * perCluster)..<((cluster + 1) * perCluster)
    }
    let clusters = Int(size) / 512 / perCluster
    let groups = (clusters / 2 - 1) / 16
    let cluster = clusters / 2 + 1 + random.below(groups) * 16 + number
    return (cluster * perCluster)..<((cluster + 1) * perCluster)
  }

  private func request(
    _ operation: BlockOperation, _ sectors: Range<Int>, _ buffer: IOBuffer? = nil
  ) -> BlockRequest {
    BlockRequest(
      operation, offset: GuestOffset(UInt64(sectors.lowerBound) * 512),
      length: UInt64(sectors.count) * 512, data: buffer?.data ?? .none)
  }

  private func write(_ sectors: Range<Int>) async {
    stamp += 1
    let buffer = IOBuffer(count: sectors.count * 512)
    for sector in sectors {
      SectorPattern.fill(
        buffer.base + (sector - sectors.lowerBound) * 512, change: stamp, sector: sector)
      expected[sector] = stamp
    }
    await perform(request(.write, sectors, buffer))
    withExtendedLifetime(buffer) {}
  }

  /// Reads what belongs to others: what copy-on-read and decompressed clusters are for.
  private func readAnywhere() async {
    let count = min(perCluster, 32)
    let start = random.below(Int(size) / 512 - count)
    let buffer = IOBuffer(count: count * 512)
    await perform(request(.read, start..<(start + count), buffer))
    withExtendedLifetime(buffer) {}
  }

  private func changeCluster() async {
    let cluster = ownCluster()
    let operation = [BlockOperation.write, .discard, .writeZeroes][random.below(3)]
    if operation == .write { return await write(cluster) }
    for sector in cluster { expected[sector] = 0 }
    var request = request(operation, cluster)
    request.keepsAllocation = random.chance(30)
    await perform(request)
  }

  private func check() async {
    let keys = expected.keys.sorted()
    if !keys.isEmpty { await read(keys[random.below(keys.count)]) }
  }

  private func read(_ sector: Int) async {
    let buffer = IOBuffer(count: 512)
    buffer.base.initializeMemory(as: UInt8.self, repeating: 0xa5, count: 512)
    await perform(request(.read, sector..<(sector + 1), buffer))
    let found = SectorPattern.change(in: buffer.base, sector: sector)
    if found != expected[sector] {
      problems.append("sector \(sector): \(String(describing: found))")
    }
  }

  /// What of this client's sectors is wrong on the closed image.
  func problemOnDisk(_ verifier: ImageVerifier) -> String? {
    for (sector, change) in expected {
      let found = verifier.sector(sector).flatMap { SectorPattern.change(in: $0, sector: sector) }
      if (found ?? 0) != change { return "sector \(sector) on disk: \(String(describing: found))" }
    }
    return nil
  }
}
