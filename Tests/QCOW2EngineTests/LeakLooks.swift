import BlockCore
import QCOW2Tools
import TestSupport

@testable import QCOW2Engine

/// Looks for leaks on a file in memory: what `LeakReturnJob` does with a file of the host.
struct LeakLooks {
  /// The bytes of a file that others change.
  private final class PeekedBytes: QCOW2Tools.ImageBytes {
    private let file: MemoryFile
    let length: UInt64

    init(_ file: MemoryFile) {
      self.file = file
      length = UInt64(file.lengthNow)
    }

    func read(
      into buffer: UnsafeMutableRawBufferPointer, at offset: HostOffset
    ) throws(ToolError) {
      guard let target = buffer.baseAddress else { return }
      file.peek(into: target, count: buffer.count, at: Int(offset.bytes))
    }
  }

  let image: Image
  let file: MemoryFile
  /// What to do between two steps of a look.
  var between: @Sendable () async -> Void = { await Task.yield() }
  private(set) var looks = 0
  private(set) var returned = 0
  private(set) var lowered = 0
  private(set) var tooLow: [LeakedCluster] = []
  private(set) var obstacle: String?
  private(set) var isComplete = false
  private var doubtful: Set<HostCluster>?

  init(_ image: Image, _ file: MemoryFile) {
    self.image = image
    self.file = file
  }

  /// Looks until all has been seen, at most so many times.
  mutating func run(atMost most: Int) async throws {
    for _ in 0..<most where !isComplete {
      try await look()
      await between()
      await image.maintain()
    }
  }

  mutating func look() async throws {
    try await image.beginLeakLook()
    defer { image.endLeakLook() }
    await between()
    let scan = try LeakScan(
      PeekedBytes(file), behind: Image.mostLeftBehind,
      standing: { [image] in Self.standing(image, $0) })
    looks += 1
    obstacle = scan.obstacle
    if scan.obstacle != nil { return }
    await between()
    guard let leaks = await image.judgeLeaks(scan.leaked.map(Self.cluster), isTable: scan.isTable),
      let low = await image.judgeLeaks(scan.tooLow.map(Self.cluster), isTable: scan.isTable)
    else { return }
    tooLow = low
    await between()
    var done = try await image.returnLeaks(leaks.filter { $0.references == 0 })
    returned += done.count
    let shared = leaks.filter { $0.references > 0 }
    if !shared.isEmpty {
      let more = try await image.returnSharedLeaks(shared) {}
      lowered += more.count
      done += more
    }
    let changing = scan.changing.union(scan.leaked.map(\.cluster)).subtracting(done.map(\.cluster))
    doubtful = (doubtful.map(changing.intersection) ?? changing).filter {
      image.standing(of: $0) == .changed
    }
    isComplete = !scan.isCutShort && doubtful?.isEmpty == true
  }

  private static func standing(_ image: Image, _ cluster: HostCluster) -> LeakScan.Standing {
    switch image.standing(of: cluster) {
    case .constant: .constant
    case .changed: .changed
    case .past: .past
    }
  }

  private static func cluster(_ suspect: LeakScan.Suspect) -> LeakedCluster {
    LeakedCluster(
      cluster: suspect.cluster, refcount: suspect.refcount, references: suspect.references)
  }
}

extension TestSupport.ImageBytes {
  /// The refcount of a host cluster, of 16 bits; nil where there is no block.
  func refcount(of cluster: Int) -> UInt16? { refcountPlace(cluster).map { be16($0) } }

  func setRefcount(_ value: UInt16, of cluster: Int) {
    if let place = refcountPlace(cluster) { put16(value, place) }
  }

  private func refcountPlace(_ cluster: Int) -> Int? {
    let perBlock = (1 << Int(be32(20))) / 2
    let index = cluster / perBlock
    guard index < Int(be32(56)) << Int(be32(20)) / 8 else { return nil }
    let block = Int(be64(Int(be64(48)) + index * 8))
    return block == 0 ? nil : block + cluster % perBlock * 2
  }

  /// Leaks clusters: free ones at the end of the file get a refcount, and shared ones a higher one.
  ///
  /// - Returns: How many are not free any more, and how many have a higher refcount.
  func leak(unused: Int, shared: Int) -> (unused: Int, shared: Int) {
    let size = 1 << Int(be32(20))
    let end = (length + size - 1) / size
    var made = (unused: 0, shared: 0)
    for cluster in 1..<end where made.shared < shared {
      guard let count = refcount(of: cluster), count >= 2 else { continue }
      setRefcount(count + 1, of: cluster)
      made.shared += 1
    }
    for cluster in end..<(end + unused) where refcount(of: cluster) == 0 {
      setRefcount(1, of: cluster)
      made.unused += 1
      setLength((cluster + 1) * size)
    }
    return made
  }
}
