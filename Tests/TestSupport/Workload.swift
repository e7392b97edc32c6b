package import BlockCore
package import QCOW2Engine
import QCOW2Format
import TestTools

/// A random stream of guest requests, and how many of them run at once.
package struct WorkloadOptions: Sendable {
  package var operations = 200
  package var workers = 1
  /// Requests in flight per worker.
  package var depth = 1
  /// Concurrent requests may touch the same sectors.
  package var overlaps = false
  /// The sectors that requests stay in; one request never leaves its region.
  package var regions: [Range<Int>] = []
  /// Sectors of the longest ordinary request.
  package var maximumLength = 24
  /// Weights of: read, write, FUA write, flush, discard, write-zeroes, write-zeroes keeping space.
  package var weights = [30, 40, 5, 6, 10, 8, 6]
  /// Of a hundred requests, so many skip the hit path.
  package var servesDirectly = 25
  /// Of a hundred writes, so many are made of whole clusters.
  package var wholeClusters = 0
  /// What a discard leaves in whole subclusters.
  package var discards = Discards.zeroes
  /// Run the background step after every so many requests of a task.
  package var maintainsEvery = 5

  /// What a discard is allowed to leave in the subclusters that lie wholly inside it.
  package enum Discards: Sendable {
    case zeroes
    /// Zeros in whole clusters; zeros or what there was in other whole subclusters.
    case zeroesInClusters
    /// Zeros or what there was.
    case either
    /// Anything.
    case anything
  }

  package init() {}
}

/// Runs a workload against an image and its model.
package final class Workload: @unchecked Sendable {  // why: one thread per simulation
  private let image: Image
  private let files: [any HostFile]
  private let model: DiskModel
  private let options: WorkloadOptions
  private var random: SeededGenerator
  private var remaining: Int
  private var busy: [Range<Int>] = []
  /// What went wrong, the first few.
  package private(set) var problems: [String] = []
  /// Requests that failed, with their errno.
  package private(set) var failures: [Errno] = []
  /// Failures are expected: count them, do not report them.
  package var toleratesFailures = false
  package private(set) var isStopped = false

  package convenience init(
    image: Image, file: any HostFile, model: DiskModel, options: WorkloadOptions, seed: UInt64
  ) {
    self.init(image: image, files: [file], model: model, options: options, seed: seed)
  }

  package init(
    image: Image, files: [any HostFile], model: DiskModel, options: WorkloadOptions, seed: UInt64
  ) {
    self.image = image
    self.files = files
    self.model = model
    self.options = options
    random = SeededGenerator(seed: seed)
    remaining = options.operations
  }

  /// Runs all requests, or until the first problem.
  package func run() async {
    await withTaskGroup(of: Void.self) { group in
      for worker in 0..<options.workers {
        for slot in 0..<options.depth {
          group.addTask { await self.client(worker: worker, slot: slot) }
        }
      }
    }
  }

  private func client(worker: Int, slot: Int) async {
    let driver = MiniWorker(target: image, files: files, worker: worker)
    var done = 0
    while remaining > 0 && problems.isEmpty && !isStopped {
      remaining -= 1
      await step(driver, slot)
      done += 1
      if done % options.maintainsEvery == 0 { await image.maintain() }
    }
  }

  /// Makes the clients stop after their current requests.
  package func stop() { isStopped = true }

  private func step(_ driver: MiniWorker, _ slot: Int) async {
    let kind = pickKind()
    if kind == 3 { return await flush(driver, slot) }
    guard let sectors = pickSectors(kind) else { return }
    if !options.overlaps { busy.append(sectors) }
    defer { busy.removeAll { $0 == sectors } }
    switch kind {
    case 0: await read(driver, slot, sectors)
    case 1, 2: await write(driver, slot, sectors, isFUA: kind == 2)
    case 4: await discard(driver, slot, sectors)
    default: await zero(driver, slot, sectors, keepsAllocation: kind == 6)
    }
  }

  private func pickKind() -> Int {
    var point = random.below(options.weights.reduce(0, +))
    for (kind, weight) in options.weights.enumerated() {
      if point < weight { return kind }
      point -= weight
    }
    return 0
  }

  private var perCluster: Int { Int(image.geometry.clusterSize) / 512 }

  private func pickSectors(_ kind: Int) -> Range<Int>? {
    let isWide = kind >= 4
    let isWhole = (kind == 1 || kind == 2) && random.chance(options.wholeClusters)
    for _ in 0..<20 {
      let region = options.regions[random.below(options.regions.count)]
      var length = 1 + random.below(options.maximumLength)
      if isWide && random.chance(30) { length = region.count / (1 + random.below(6)) }
      length = max(1, min(length, region.count))
      var start = region.lowerBound + random.below(region.count - length + 1)
      if random.chance(10) { start = region.upperBound - length }
      var sectors = start..<(start + length)
      if isWhole {
        let first = start / perCluster
        let last = min(
          (start + length + perCluster - 1) / perCluster, model.size / 512 / perCluster)
        if first >= last { continue }
        sectors = (first * perCluster)..<(last * perCluster)
      }
      if options.overlaps || !busy.contains(where: { $0.overlaps(sectors) }) { return sectors }
    }
    return nil
  }

  private func perform(_ request: BlockRequest, _ driver: MiniWorker, _ slot: Int) async -> Bool {
    let plans = !random.chance(options.servesDirectly)
    guard let errno = await driver.perform(request, slot: slot, plans: plans) else { return true }
    failures.append(errno)
    if !toleratesFailures { problems.append("\(request.operation) failed with \(errno.code)") }
    return false
  }

  private func request(
    _ operation: BlockOperation, _ sectors: Range<Int>, _ buffer: IOBuffer? = nil
  ) -> BlockRequest {
    BlockRequest(
      operation, offset: GuestOffset(UInt64(sectors.lowerBound) * 512),
      length: UInt64(sectors.count) * 512, data: buffer?.data ?? .none)
  }

  private func flush(_ driver: MiniWorker, _ slot: Int) async {
    let number = model.beginFlush()
    let done = await perform(BlockRequest(.flush), driver, slot)
    model.endFlush(number, failed: !done)
  }

  private func read(_ driver: MiniWorker, _ slot: Int, _ sectors: Range<Int>) async {
    let buffer = IOBuffer(count: sectors.count * 512)
    buffer.base.initializeMemory(as: UInt8.self, repeating: 0xa5, count: buffer.count)
    let started = model.clock.tick()
    guard await perform(request(.read, sectors, buffer), driver, slot) else { return }
    let ended = model.clock.tick()
    for sector in sectors {
      let bytes = buffer.base + (sector - sectors.lowerBound) * 512
      if let problem = model.checkRead(bytes, sector: sector, started: started, ended: ended) {
        problems.append("read \(started)–\(ended): " + problem)
        return
      }
    }
  }

  private func write(
    _ driver: MiniWorker, _ slot: Int, _ sectors: Range<Int>, isFUA: Bool
  ) async {
    let buffer = IOBuffer(count: sectors.count * 512)
    let change = model.begin(sectors, isZero: false)
    for sector in sectors {
      SectorPattern.fill(
        buffer.base + (sector - sectors.lowerBound) * 512, change: change, sector: sector)
    }
    var request = request(.write, sectors, buffer)
    request.isFUA = isFUA
    let done = await perform(request, driver, slot)
    withExtendedLifetime(buffer) {}
    model.end(change, failed: !done, durable: done && isFUA)
  }

  private func discard(_ driver: MiniWorker, _ slot: Int, _ sectors: Range<Int>) async {
    // Only whole subclusters are promised to read as zeros; the engine leaves the rest alone.
    let unit =
      image.header.incompatible.contains(.extendedL2) ? max(perCluster / 32, 1) : perCluster
    let whole = rounded(sectors, unit)
    let clusters = options.discards == .zeroesInClusters ? rounded(sectors, perCluster) : whole
    var changes: [(number: UInt32, isSure: Bool)] = []
    func begin(_ part: Range<Int>, isSure: Bool) {
      if part.isEmpty { return }
      let number = model.begin(part, isZero: true, isWild: options.discards == .anything)
      changes.append((number, isSure))
    }
    if clusters.isEmpty {
      begin(whole, isSure: false)
    } else {
      begin(whole.lowerBound..<clusters.lowerBound, isSure: false)
      begin(clusters, isSure: options.discards != .either)
      begin(clusters.upperBound..<whole.upperBound, isSure: false)
    }
    let done = await perform(request(.discard, sectors), driver, slot)
    // A change that may or may not be there is one that failed.
    for change in changes { model.end(change.number, failed: !done || !change.isSure) }
  }

  /// The whole units inside a range; the last one of the disk counts as whole.
  private func rounded(_ sectors: Range<Int>, _ unit: Int) -> Range<Int> {
    let isAtEnd = sectors.upperBound == model.size / 512
    let first = (sectors.lowerBound + unit - 1) / unit * unit
    let last = isAtEnd ? sectors.upperBound : sectors.upperBound / unit * unit
    return first < last ? first..<last : 0..<0
  }

  private func zero(
    _ driver: MiniWorker, _ slot: Int, _ sectors: Range<Int>, keepsAllocation: Bool
  ) async {
    let change = model.begin(sectors, isZero: true)
    var request = request(.writeZeroes, sectors)
    request.keepsAllocation = keepsAllocation
    request.isFUA = random.chance(15)
    let done = await perform(request, driver, slot)
    model.end(change, failed: !done, durable: done && request.isFUA)
  }
}
