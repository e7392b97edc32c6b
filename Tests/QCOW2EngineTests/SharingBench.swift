import BlockCore
import QCOW2Format
import TestSupport
import TestTools
import Testing

@testable import QCOW2Engine

/// A guest whose disk gets a snapshot, and loses it, while it writes.
final class SharingBench: @unchecked Sendable {  // why: one thread runs the simulation
  let bench: Bench
  let image: Image
  private let files: [any HostFile]
  /// The change that each sector holds; 0 for zeros.
  private var contents: [UInt32]
  /// Changes that have begun and not been noted as done.
  private var pending: [Int: Set<UInt32>] = [:]
  private var last: UInt32 = 1000
  /// What each sector of the snapshot may hold.
  private var snapshot: [Set<UInt32>] = []
  /// The same, also when it has been deleted.
  private var snapshotAtCut: [Set<UInt32>] = []
  /// A cut is to come; see ``noteCut()``.
  var waitsForCut = false
  private var tree: [L1Entry] = []
  private var areas: [ClusterRun] = []

  init(_ bench: Bench) async throws {
    self.bench = bench
    let verifier = bench.verifier()
    contents = (0..<(bench.builder.size / 512)).map { Self.found(verifier.sector($0), $0) }
    files = bench.files
    image = try await bench.open()
  }

  static func found(_ bytes: UnsafeRawPointer?, _ sector: Int) -> UInt32 {
    bytes.map { SectorPattern.change(in: $0, sector: sector) ?? .max } ?? 0
  }

  var sectorCount: Int { contents.count }

  /// Writes sectors, or discards them as whole clusters.
  func change(
    _ sectors: Range<Int>, discards: Bool = false, worker: Int = 0, slot: Int = 0,
    plans: Bool = true
  ) async {
    noteCut()
    last += 1
    let number = discards ? 0 : last
    let buffer = IOBuffer(count: sectors.count * 512)
    for sector in sectors {
      pending[sector, default: []].insert(number)
      SectorPattern.fill(
        buffer.base + (sector - sectors.lowerBound) * 512, change: number, sector: sector)
    }
    let request = BlockRequest(
      discards ? .discard : .write, offset: GuestOffset(UInt64(sectors.lowerBound * 512)),
      length: UInt64(buffer.count), data: buffer.data)
    let driver = MiniWorker(target: image, files: files, worker: worker)
    #expect(await driver.perform(request, slot: slot, plans: plans) == nil)
    noteCut()
    for sector in sectors {
      pending[sector]?.remove(number)
      contents[sector] = number
    }
    withExtendedLifetime(buffer) {}
  }

  /// Notes what the disk has, if a cut was made since the last look.
  ///
  /// A change that has begun may be before the cut or after it.
  func noteCut() {
    guard waitsForCut, image.tables.sharing.isCounting else { return }
    waitsForCut = false
    snapshot = contents.enumerated().map {
      (pending[$0.offset] ?? []).union([$0.element])
    }
    snapshotAtCut = snapshot
  }

  /// There is no snapshot any more.
  func forgetSnapshot() { snapshot = [] }

  /// What each sector holds now.
  var disk: [UInt32] { contents }

  /// The disk has been made another.
  func becomes(_ disk: [UInt32]) { contents = disk }

  /// The host cluster that a guest cluster lies in; nil if it has none.
  func host(of cluster: Int) async throws -> UInt64? {
    let start = GuestOffset(UInt64(cluster) << UInt64(bench.builder.clusterBits))
    guard case .data(let host, _) = try await image.mapping.extent(at: start, length: 512) else {
      return nil
    }
    return host.bytes
  }

  // MARK: What a job does

  /// The cut of a snapshot: from its end on, nothing of what the guest has may change in place.
  func cut() async throws {
    let geometry = image.geometry
    let bytes = UInt64(image.tables.l1.count * 8)
    for count in [geometry.clusters(covering: bytes), 1] {
      areas.append(try await image.allocator.reserveContiguous(count))
    }
    try await image.exclusively { () async throws(ImageError) in
      self.tree = self.image.beginSharing()
      self.snapshot = self.contents.enumerated().map {
        (self.pending[$0.offset] ?? []).union([$0.element])
      }
      self.snapshotAtCut = self.snapshot
    }
  }

  /// Counts what the snapshot refers to, and then makes it one.
  func count() async throws {
    var references = TreeReferences(tree)
    while try await references.step(.raise, in: image) {}
    image.endSharing()
    try await settle()
    let geometry = image.geometry
    for run in areas {
      for cluster in run.start..<run.end { image.metadata.tables.insert(cluster) }
    }
    let size = Int(geometry.clusterSize)
    let l1 = IOBuffer(count: Int(areas[0].count) * size)
    for (index, entry) in tree.enumerated() { l1.base.storeBE64(entry.raw, index * 8) }
    let table = IOBuffer(count: size)
    table.base.storeBE64(geometry.start(of: areas[0].start).bytes, 0)
    // As many entries, an ID and a name of one letter, and 24 bytes of which the second 8 are the size.
    table.base.storeBE64(UInt64(tree.count) << 32 | 1 << 16 | 1, 8)
    table.base.storeBE64(24, 32)
    table.base.storeBE64(image.size, 48)
    table.base.storeBE64(0x3131 << 48, 64)
    let places = areas.map { geometry.start(of: $0.start) }
    try await image.durability.headerEditor.commit(
      .snapshots(places[1], count: 1), after: .round(image.flusher)
    ) { () async throws(ImageError) in
      try await self.image.reader.storage.write(from: l1, at: places[0])
      try await self.image.reader.storage.write(from: table, at: places[1])
    }
  }

  /// Deletes the snapshot, but leaves COPIED as it is.
  func drop() async throws {
    try await image.durability.headerEditor.edit { _ in .snapshots(HostOffset(0), count: 0) }
    image.tables.sharing.beginDropping()
    var references = TreeReferences(tree)
    while try await references.step(.lower(punches: true), in: image) {
      let next = references.position
      guard next.slice > 0, let table = tree[next.index].l2Table else { continue }
      // It would be punched, or be somebody's data, before all of it is read.
      let refcount = try await image.allocator.refcount(of: image.geometry.hostCluster(of: table))
      #expect(refcount > 0, "a table goes before slice \(next.slice) of it has been dropped")
    }
    for run in areas {
      for cluster in run.start..<run.end { image.metadata.tables.remove(cluster) }
      try await image.allocator.release(run, punch: true)
    }
    areas = []
    tree = []
    snapshot = []
  }

  func settle() async throws {
    try await image.withJobSlot { job throws(ImageError) in
      for index in 0..<self.image.tables.l1.count {
        try await self.image.settleCopied(ofTable: index, by: job)
      }
    }
  }

  // MARK: What there is

  /// What is wrong with the snapshot in some bytes of the image, and with all that it relies on.
  ///
  /// Without a snapshot, a refcount may be too high, and COPIED as the refcount was before or is after;
  /// no reference may be without its refcount.
  func crashProblem(_ bytes: ImageBytes) -> String? {
    let verifier = bench.verifier([bytes])
    verifier.allowsStaleBitmaps = true
    let hasSnapshot = bytes.be32(60) > 0
    for error in verifier.check().errors {
      if hasSnapshot || !error.contains(": entry ") { return error }
    }
    return snapshotProblem(bytes)
  }

  /// What is wrong with what the snapshot in some bytes of the image holds, if there is one.
  func snapshotProblem(_ bytes: ImageBytes) -> String? {
    if bytes.be32(60) == 0 { return nil }
    let verifier = bench.verifier([bytes])
    for (sector, wanted) in snapshotAtCut.enumerated() {
      let found = Self.found(verifier.snapshotSector(sector), sector)
      if !wanted.contains(found) {
        return "the snapshot's sector \(sector): \(found), not \(wanted)"
      }
    }
    return nil
  }

  /// Closes the image, and checks it, what the guest has and what the snapshot has.
  func finish() async throws -> [String] {
    try await image.close()
    let verifier = bench.verifier()
    let report = verifier.check()
    var problems = report.errors
    if report.leaks > 0 { problems.append("\(report.leaks) leaks") }
    for sector in contents.indices {
      let found = Self.found(verifier.sector(sector), sector)
      if found != contents[sector] {
        problems.append("sector \(sector): \(found), not \(contents[sector])")
      }
    }
    for (sector, wanted) in snapshot.enumerated() {
      let found = Self.found(verifier.snapshotSector(sector), sector)
      if !wanted.contains(found) {
        problems.append("the snapshot's sector \(sector): \(found), not \(wanted)")
      }
    }
    return Array(problems.prefix(5))
  }
}
