import QCOW2Format
import TestSupport

@testable import QCOW2Engine

/// What a later process finds in the metadata memory of one that has died: by the head and the layout of
/// regions, without anything else that the dead process knew.
struct FoundMetadata {
  struct Slice {
    let key: UInt64
    let isAhead: Bool
    let bytes: UnsafeRawPointer
  }

  struct Table {
    let place: UInt64
    let count: Int
    let layout: DiskTableLayout
    let words: UnsafePointer<UInt64>

    func entry(_ index: Int) -> UInt64 { words[index] }

    func isMarked(_ sector: Int) -> Bool {
      [layout.dirty, layout.writing].contains {
        words[$0 + sector / 64] >> UInt64(sector % 64) & 1 != 0
      }
    }

    /// A sector as it belongs into the host file.
    func bytes(_ sector: Int) -> [UInt8] {
      (0..<64).flatMap { index in
        withUnsafeBytes(of: words[sector * 64 + index].bigEndian) { Array($0) }
      }
    }
  }

  private(set) var sliceSize = 0
  private(set) var l2: [Slice] = []
  private(set) var refcounts: [Slice] = []
  private(set) var l1Tables: [Table] = []
  private(set) var refcountTables: [Table] = []
  /// Host clusters that are reserved and not taken.
  private(set) var reserved = Set<UInt64>()
  /// By the table of each bitmap: the bits that have changed.
  private(set) var bitmaps: [UInt64: [UInt64]] = [:]
  private(set) var problems: [String] = []

  init(_ memory: MetadataMemory) {
    var records: [(record: RegionRecord, base: UnsafeRawPointer)] = []
    for number in 0..<MetadataHead.capacity {
      let record = memory.head[number]
      if record.kind == 0 { continue }
      guard record.check == record.checksum, let base = memory.address(number) else {
        problems.append("line \(number) of the head is broken: \(record)")
        continue
      }
      records.append((record, UnsafeRawPointer(base)))
    }
    func find(_ slots: MetadataKind, _ bytes: MetadataKind) -> [Slice] {
      guard let slots = records.first(where: { $0.record.kind == slots.rawValue }),
        let bytes = records.first(where: { $0.record.kind == bytes.rawValue })
      else { return [] }
      sliceSize = Int(bytes.record.elementSize)
      return slices(slots.base, Int(slots.record.count), bytes.base)
    }
    l2 = find(.l2Slots, .l2Slices)
    refcounts = find(.refcountSlots, .refcountSlices)
    for (record, base) in records {
      switch MetadataKind(rawValue: record.kind) {
      case .l1Table: l1Tables.append(table(record, base))
      case .refcountTable: refcountTables.append(table(record, base))
      case .arenas: findReserved(base, Int(record.count))
      case .bitmapBits: findBitmaps(base, Int(record.count))
      case .none: problems.append("an unknown kind \(record.kind)")
      default: break
      }
    }
  }

  private func slices(
    _ slots: UnsafeRawPointer, _ count: Int, _ bytes: UnsafeRawPointer
  ) -> [Slice] {
    (0..<count).compactMap { number in
      let slot = slots.load(
        fromByteOffset: number * MemoryLayout<CacheSlot>.stride, as: CacheSlot.self)
      guard slot.isAhead || slot.state == .resident || slot.state == .ahead else { return nil }
      return Slice(key: slot.key, isAhead: slot.isAhead, bytes: bytes + number * sliceSize)
    }
  }

  private func table(_ record: RegionRecord, _ base: UnsafeRawPointer) -> Table {
    let layout = DiskTableLayout(count: Int(record.count))
    return Table(
      place: record.place, count: Int(record.count), layout: layout,
      words: base.assumingMemoryBound(to: UInt64.self))
  }

  private mutating func findReserved(_ base: UnsafeRawPointer, _ workers: Int) {
    for worker in 0..<workers {
      let words = (base + worker * 64).assumingMemoryBound(to: UInt64.self)
      let runs = [words[0], words[1]].map { $0 >> 17..<($0 >> 17 + $0 & 0x1ffff) }
      // The same run may be in use and to follow, while it becomes the one in use.
      if runs[0] != runs[1] && runs[0].overlaps(runs[1]) {
        problems.append("worker \(worker) has clusters twice: \(runs)")
      }
      let own = Set(runs.joined())
      if !own.isDisjoint(with: reserved) { problems.append("two workers have the same clusters") }
      reserved.formUnion(own)
    }
  }

  private mutating func findBitmaps(_ base: UnsafeRawPointer, _ words: Int) {
    let all = base.assumingMemoryBound(to: UInt64.self)
    var at = 0
    while at + 2 <= words, all[at] != 0 {
      let count = TrackedBits.words(all[at + 1])
      bitmaps[all[at]] = (0..<count).map { all[at + 2 + $0] }
      at += 2 + 2 * count
    }
  }

  /// The table in force: the one that the header on the host file points at.
  func l1(_ image: ImageBytes) -> Table? { l1Tables.first { $0.place == image.be64(40) } }

  func refcountTable(_ image: ImageBytes) -> Table? {
    refcountTables.first { $0.place == image.be64(48) }
  }

  // MARK: What is not marked

  /// Where the memory has something else than the host file, without a mark.
  func unmarkedDifference(_ image: ImageBytes) -> String? {
    guard let l1 = l1(image), let table = refcountTable(image) else { return "a table is missing" }
    let cluster = UInt64(1) << UInt64(image.be32(20))
    for (name, table) in [("L1", l1), ("refcount", table)] {
      for sector in 0..<table.layout.sectors where !table.isMarked(sector) {
        if !isOnHost(image, Int(table.place) + sector * 512, table.bytes(sector)) {
          return "sector \(sector) of the \(name) table differs and is not marked"
        }
      }
    }
    let tables = Set((0..<l1.count).map { l1.entry($0) & 0x00ff_ffff_ffff_fe00 }).subtracting([0])
    let blocks = Set((0..<table.count).map { table.entry($0) & ~511 }).subtracting([0])
    for (slices, owners) in [(l2, tables), (refcounts, blocks)] {
      for slice in slices where !slice.isAhead && owners.contains(slice.key & ~(cluster - 1)) {
        let bytes = Array(UnsafeRawBufferPointer(start: slice.bytes, count: sliceSize))
        if !isOnHost(image, Int(slice.key), bytes) {
          return "the slice at \(slice.key) differs and is not marked"
        }
      }
    }
    return nil
  }

  private func isOnHost(_ image: ImageBytes, _ offset: Int, _ bytes: [UInt8]) -> Bool {
    var found = [UInt8](repeating: 0, count: bytes.count)
    found.withUnsafeMutableBytes {
      if let base = $0.baseAddress { image.read(into: base, count: $0.count, at: offset) }
    }
    return found == bytes
  }
}

/// One flush round from what was found, in its order, into a copy of the host file.
struct FoundMetadataWriteBack {
  let found: FoundMetadata
  let image: ImageBytes

  private var clusterBits: UInt64 { UInt64(image.be32(20)) }
  private var refcountOrder: Int { image.be32(4) >= 3 ? Int(image.be32(96)) : 4 }

  /// Writes everything back, reserved clusters given back.
  ///
  /// - Parameter check: says what is wrong with the image; called after each class of tables.
  /// - Returns: what went wrong.
  func run(_ check: (_ after: String) -> String?) -> String? {
    guard let l1 = found.l1(image), let table = found.refcountTable(image) else {
      return "no table is the one that the header points at"
    }
    var refcounts: [UInt64: [UInt8]] = [:]
    for slice in found.refcounts where slice.isAhead { refcounts[slice.key] = bytes(slice) }
    for cluster in found.reserved {
      if let problem = giveBack(cluster, table, &refcounts) { return problem }
    }
    for (key, bytes) in refcounts { image.put(bytes, Int(key)) }
    clearDirty()
    if let problem = check("refcount blocks") { return problem }
    write(table)
    if let problem = check("refcount table") { return problem }
    for slice in found.l2 where slice.isAhead { image.put(bytes(slice), Int(slice.key)) }
    if let problem = check("L2") { return problem }
    write(l1)
    return check("L1")
  }

  private func bytes(_ slice: FoundMetadata.Slice) -> [UInt8] {
    Array(UnsafeRawBufferPointer(start: slice.bytes, count: found.sliceSize))
  }

  private func write(_ table: FoundMetadata.Table) {
    for sector in 0..<table.layout.sectors where table.isMarked(sector) {
      image.put(table.bytes(sector), Int(table.place) + sector * 512)
    }
  }

  /// With all refcounts written, an image with lazy ones is as good as any.
  private func clearDirty() {
    if image.be32(4) >= 3 { image.put64(image.be64(72) & ~1, 72) }
  }

  /// Takes the reference from a cluster that was reserved and never taken.
  private func giveBack(
    _ cluster: UInt64, _ table: FoundMetadata.Table, _ slices: inout [UInt64: [UInt8]]
  ) -> String? {
    let perBlock = (UInt64(8) << clusterBits) >> UInt64(refcountOrder)
    let block = table.entry(Int(cluster / perBlock)) & ~511
    let byte = ((cluster % perBlock) << UInt64(refcountOrder)) >> 3
    let size = UInt64(found.sliceSize)
    let key = block + byte / size * size
    var bytes = slices[key] ?? [UInt8](repeating: 0, count: Int(size))
    let index = Int(cluster % ((size * 8) >> UInt64(refcountOrder)))
    let order = refcountOrder
    let value = bytes.withUnsafeMutableBytes { buffer -> UInt64 in
      guard let base = buffer.baseAddress else { return 0 }
      if slices[key] == nil { image.read(into: base, count: Int(size), at: Int(key)) }
      let value = RefcountWidth.get(base, order: order, index: index)
      RefcountWidth.set(base, order: order, index: index, value: 0)
      return value
    }
    slices[key] = bytes
    return value == 1 ? nil : "reserved cluster \(cluster) has refcount \(value)"
  }
}
