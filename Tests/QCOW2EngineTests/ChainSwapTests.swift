import BlockCore
import QCOW2Format
import Synchronization
import TestSupport
import TestTools
import Testing

@testable import QCOW2Engine

/// A backing file that is replaced while the guest uses the disk.
@Suite struct ChainSwapTests {
  private static let clusterBits = 12

  private func bench(schedule: UInt64? = nil) -> Bench {
    var builder = ImageBuilder()
    builder.clusterBits = Self.clusterBits
    builder.size = 1 << 20
    builder.features.backing = .equal
    for cluster in 0..<16 { builder.mappings[cluster] = .data }
    let bench = Bench(builder, schedule: schedule)
    bench.options.workers = 2
    bench.options.slotsPerWorker = 4
    return bench
  }

  private func settle(_ bench: Bench) async {
    for _ in 0..<30 { await bench.host.complete("tick") }
  }

  /// A read of one sector that the image does not have.
  private func read(_ sector: Int, _ buffer: IOBuffer) -> BlockRequest {
    BlockRequest(
      .read, offset: GuestOffset(UInt64(sector * 512)), length: 512, data: buffer.data)
  }

  @Test(
    "A read on the old chain, held in its transfer, holds the swap up and reads what it should",
    arguments: [true, false])
  func theSwapWaitsForReads(plans: Bool) throws {
    let bench = bench()
    try bench.host.run {
      let (old, new) = (GatedFile(bench.files[2]), GatedFile(bench.files[2]))
      let files: [any HostFile] = [bench.files[0], bench.files[1], old, new]
      let image = try await bench.open(Array(files[..<3]), options: bench.options)
      let length = image.reader.backing?.length ?? 0
      let layer = RawLayer(new, length: length, fileNumber: 3)
      let workers = [0, 1].map { MiniWorker(target: image, files: files, worker: $0) }
      let buffers = (0..<3).map { _ in IOBuffer(count: 512) }
      // The slice that says so is resident from here on.
      #expect(await workers[0].perform(self.read(128, buffers[0]), slot: 0) == nil)
      let wanted = SectorPattern.change(in: buffers[0].base, sector: 128)
      #expect(wanted != nil)
      for file in [old, new] { file.gate = 0..<(1 << 40) }
      new.operations = []
      let ends = Box<[String]>([])
      await withTaskGroup(of: Void.self) { group in
        group.addTask {
          #expect(await workers[0].perform(read(200, buffers[0]), slot: 1, plans: plans) == nil)
          ends.value.append("old")
        }
        await settle(bench)
        #expect(old.held.count == 1)
        group.addTask {
          let replaced = try? await image.replaceBacking(with: layer, name: nil)
          #expect(replaced as? RawLayer != nil)
          ends.value.append("swap")
        }
        await settle(bench)
        group.addTask {
          #expect(await workers[1].perform(read(200, buffers[1]), slot: 1, plans: plans) == nil)
          ends.value.append("new")
        }
        await settle(bench)
        #expect(ends.value.isEmpty && old.counts[.read] == 1 && new.counts[.read] == nil)
        old.gate = nil
        old.gate = 0..<(1 << 40)
      }
      #expect(ends.value == ["old", "swap", "new"] || ends.value == ["swap", "old", "new"])
      #expect(old.counts[.read] == 1 && new.counts[.read] == 1)
      #expect(buffers[0].withBytes { $0[0] } == buffers[1].withBytes { $0[0] })
      for buffer in buffers[..<2] {
        #expect(SectorPattern.change(in: buffer.base, sector: 200) == wanted)
      }
      #expect(await workers[0].perform(self.read(300, buffers[2]), slot: 0, plans: plans) == nil)
      #expect(old.counts[.read] == 1 && new.counts[.read] == 2)
      withExtendedLifetime(buffers) {}
      try await image.close()
    }
  }

  @Test("On threads: nobody reads a file that was replaced")
  func nobodyReadsAReplacedFile() async throws {
    let bench = bench()
    let own = MemoryFile(bench.original.copy())
    own.yields = true
    let contents = bench.immediateFiles([bench.original])[2]
    let layers = (0..<2).map { _ in ClosableFile(contents) }
    let files: [any HostFile] = [own, own, layers[0], layers[1]]
    layers[1].isClosed.store(true, ordering: .relaxed)
    var sources = ImageSources(file: own)
    let length = UInt64(bench.builder.size)
    sources.backing = RawLayer(layers[0], length: length, fileNumber: 2)
    let image = try await Image.open(sources, options: bench.options)
    let threads = (0..<3).map { _ in ThreadExecutor() }
    let isOver = Guarded(false)
    await withTaskGroup(of: Void.self) { group in
      for number in 0..<2 {
        group.addTask(executorPreference: threads[number]) {
          await Self.readAll(image, files, number, until: isOver)
        }
      }
      group.addTask(executorPreference: threads[2]) {
        for round in 1...testSetting("QUBLK_SWAP_ROUNDS", default: 200) {
          let (next, last) = (round % 2, (round + 1) % 2)
          layers[next].isClosed.store(false, ordering: .sequentiallyConsistent)
          let layer = RawLayer(layers[next], length: length, fileNumber: UInt8(2 + next))
          _ = try? await image.replaceBacking(with: layer, name: nil)
          layers[last].isClosed.store(true, ordering: .sequentiallyConsistent)
          await Task.yield()
        }
        isOver.withLock { $0 = true }
      }
    }
    for thread in threads { thread.stop() }
    #expect(layers.map { $0.late.load(ordering: .relaxed) } == [0, 0])
    try await image.close()
  }

  /// Reads sectors that the image does not have, until it is over.
  private static func readAll(
    _ image: Image, _ files: [any HostFile], _ number: Int, until isOver: Guarded<Bool>
  ) async {
    let worker = MiniWorker(target: image, files: files, worker: number)
    let buffer = IOBuffer(count: 512)
    var sector = 128
    var wanted: UInt32?
    while !isOver.withLock({ $0 }) {
      sector = sector == 2047 ? 128 : sector + 1
      let request = BlockRequest(
        .read, offset: GuestOffset(UInt64(sector * 512)), length: 512, data: buffer.data)
      #expect(await worker.perform(request, slot: 0, plans: sector % 3 > 0) == nil)
      let found = SectorPattern.change(in: buffer.base, sector: sector)
      wanted = wanted ?? found
      #expect(found != nil && found == wanted)
    }
  }

  /// A file that notes who reads it after it was closed.
  private final class ClosableFile: ForwardingFile, Sendable {
    let file: any HostFile
    let isClosed = Atomic<Bool>(false)
    let late = Atomic<Int>(0)

    init(_ file: any HostFile) { self.file = file }

    func read(into buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
      note()
      try await file.read(into: buffer, at: offset)
      await Task.yield()
      note()
    }

    private func note() {
      if isClosed.load(ordering: .sequentiallyConsistent) {
        late.wrappingAdd(1, ordering: .relaxed)
      }
    }
  }

  // MARK: In the header

  private static func names(_ bytes: ImageBytes) throws -> (String?, String?) {
    let cluster = IOBuffer(count: 1 << clusterBits)
    bytes.read(into: cluster.base, count: cluster.count, at: 0)
    let header = try cluster.withBytes {
      try HeaderCluster(parsing: $0, fileLength: UInt64(bytes.length))
    }
    return (header.backingFile, header.backingFormat)
  }

  @Test(
    "A power cut leaves the old name of the backing file or the new one",
    arguments: [nil, "a", String(repeating: "long", count: 200)], [0, 480])
  func aPowerCutLeavesOneName(name: String?, extensionBytes: Int) throws {
    var builder = ImageBuilder()
    builder.clusterBits = Self.clusterBits
    builder.size = 1 << 20
    builder.features.backing = .equal
    builder.mappings[0] = .data
    // Of a kind that nobody knows: the name's new place is in another sector then.
    if extensionBytes > 0 {
      builder.extensions =
        [0x12, 0x34, 0x56, 0x78, 0, 0, UInt8(extensionBytes >> 8), UInt8(extensionBytes & 0xff)]
        + [UInt8](repeating: 7, count: extensionBytes)
    }
    let bench = Bench(builder, schedule: nil)
    try bench.host.run {
      let image = try await bench.open()
      let layer = image.reader.backing
      let old = try await image.replaceBacking(
        with: name == nil ? nil : layer, name: name.map { .file($0, format: nil) } ?? .some(.none))
      #expect(old === layer && image.header.backingFileSize == UInt32(name?.utf8.count ?? 0))
      #expect((image.reader.backing == nil) == (name == nil))
      try await image.close()
    }
    #expect(try Self.names(bench.bytes).0 == name)
    let crashes = CrashEnumerator(
      originals: bench.originals, events: bench.recording.events, seed: testSeed("names"))
    var found: Set<String?> = []
    crashes.visit(perCut: 8) { state in
      let kept = try? Self.names(state.bytes)
      #expect(kept != nil, "\(state.description)")
      if let kept { found.insert(kept.0) }
      return kept != nil
    }
    #expect(found == ["base", name])
  }

  @Test("What has no place in the header cluster is refused, and nothing is changed")
  func aNameWithoutRoom() throws {
    let bench = bench()
    try bench.host.run {
      let image = try await bench.open()
      let layer = image.reader.backing
      for name in ["", String(repeating: "x", count: 1024)] {
        await #expect(throws: ImageError.self) {
          try await image.replaceBacking(with: nil, name: .file(name, format: nil))
        }
      }
      // Extensions change in the first sector alone.
      let format = String(repeating: "f", count: 500)
      await #expect(throws: ImageError.self) {
        try await image.replaceBacking(with: nil, name: .file("new", format: format))
      }
      #expect(image.reader.backing === layer)
      try await image.close()
    }
    #expect(try Self.names(bench.bytes).0 == "base")
  }
}
