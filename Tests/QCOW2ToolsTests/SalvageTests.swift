import BlockCore
import Glibc
import QCOW2Codec
import QCOW2Format
import QCOW2Tools
import TestTools
import Testing

/// Images that are destroyed by hand: what is not lost reads as before, and what is lost is what must be.
@Suite(.enabled(if: hasQEMU, "needs qemu-img and qemu-io")) struct SalvageTests {
  /// How an image is destroyed.
  struct Damage: Sendable, CustomTestStringConvertible {
    var name: String
    var base = Base.plain
    var options = SalvageOptions()
    /// Sectors of the file that the host cannot read, in bytes.
    var unreadable: @Sendable (ImageEditor) -> Range<Int> = { _ in 0..<0 }
    /// Destroys the image, and says which ranges of the disk are lost then.
    var edit: @Sendable (inout ImageEditor) -> [Range<Int>]
    var testDescription: String { name }

    init(
      _ name: String, _ base: Base = .plain,
      options: (inout SalvageOptions) -> Void = { _ in },
      unreadable: @escaping @Sendable (ImageEditor) -> Range<Int> = { _ in 0..<0 },
      edit: @escaping @Sendable (inout ImageEditor) -> [Range<Int>]
    ) {
      self.name = name
      self.base = base
      options(&self.options)
      self.unreadable = unreadable
      self.edit = edit
    }
  }

  enum Base: String, CaseIterable, Sendable {
    case plain, compressed, zstd, extended, v2

    var script: String {
      let create = "qemu-img create -q -f qcow2"
      let fill =
        "qemu-io -c 'write -P 1 0 100k' -c 'write -z 200k 40k' -c 'write -P 2 4M 100k' -c 'write -P 3 6M 40k'"
      switch self {
      case .plain: return "\(create) -o cluster_size=4k x 8M; \(fill) x"
      case .v2: return "\(create) -o cluster_size=4k,compat=0.10 x 8M; \(fill) x"
      case .compressed:
        return "\(create) y 8M; \(fill) y; qemu-img convert -c -O qcow2 -o cluster_size=4k y x"
      case .zstd:
        return """
          \(create) y 8M; \(fill) y
          qemu-img convert -c -O qcow2 -o cluster_size=4k,compression_type=zstd y x
          """
      case .extended:
        return "\(create) -o cluster_size=16k,extended_l2=on x 32M; \(fill) x"
      }
    }
  }

  private static let table = 2 << 20

  /// The guest's cluster 3 of the plain image: its L2 entry.
  private static func third(_ image: ImageEditor) -> Int { image.l2(0) + 3 * 8 }
  private static let thirdRange = 3 * 4096..<4 * 4096

  static let damages: [Damage] = headers + tables + entries + hosts

  private static func field(
    _ name: String, _ offset: Int, _ count: Int, _ value: UInt64, of base: Base = .plain,
    options: (inout SalvageOptions) -> Void = { _ in }
  ) -> Damage {
    Damage("\(name) is \(value)", base, options: options) { image in
      image.set(offset, count, value)
      return []
    }
  }

  private static let headers: [Damage] = [
    field("magic", 0, 4, 0), field("version", 4, 4, 99),
    field("version", 4, 4, 0x200_0000, of: .v2),
    field("cluster_bits", 20, 4, 0),
    field("cluster_bits", 20, 4, 77, options: { $0.clusterSize = 4096 }),
    field("cluster_bits, wrong but possible,", 20, 4, 13, options: { $0.clusterSize = 4096 }),
    field("cluster_bits", 20, 4, 255, of: .compressed),
    field("cluster_bits", 20, 4, 0xffff_ffff, of: .v2),
    field("size", 24, 8, 0), field("size", 24, 8, .max), field("size", 24, 8, 1 << 50),
    field("size", 24, 8, 512, options: { $0.size = 8 << 20 }),
    field("l1_size", 36, 4, 0), field("l1_size", 36, 4, 0xffff_ffff),
    field("l1_table_offset", 40, 8, 0), field("l1_table_offset", 40, 8, 0x1001),
    field("l1_table_offset", 40, 8, 1 << 60),
    field("l1_table_offset", 40, 8, 1 << 40, of: .compressed),
    field("refcount_table_offset", 48, 8, 0x1234_5678), field("refcount_table_clusters", 56, 4, 0),
    field("nb_snapshots", 60, 4, 0xffff_ffff), field("snapshots_offset", 64, 8, 77),
    field("incompatible features", 72, 8, 0xffff_0000), field("corrupt bit", 72, 8, 2),
    field("dirty bit", 72, 8, 1), field("refcount_order", 96, 4, 63),
    field("header_length", 100, 4, 7),
    field("header_length", 100, 4, 0xffff_fff8), field("an extension's length", 116, 4, 1 << 30),
    field("crypt_method", 32, 4, 9),
    field("compression type bits", 72, 8, 0, of: .zstd),
    Damage("l1_table_offset is given", options: { _ in }) { image in
      image.set(40, 8, 0)
      return []
    },
    Damage("no first sector") { image in
      for place in stride(from: 0, to: 512, by: 8) { image.set(place, 8, 0) }
      return []
    },
    Damage("no first cluster", .compressed) { image in
      for place in stride(from: 0, to: 4096, by: 8) { image.set(place, 8, 0x6161_6161_6161_6161) }
      return []
    },
    Damage("refcounts of noise") { image in
      for place in stride(from: 0, to: 4096, by: 8) {
        image.set(image.refcountBlock(0) + place, 8, 0x1234_5678_9abc_def0)
      }
      return []
    },
  ]

  private static func l1(
    _ name: String, options: (inout SalvageOptions) -> Void = { _ in }, isLost: Bool = true,
    _ change: @escaping @Sendable (UInt64) -> UInt64
  ) -> Damage {
    Damage("L1 entry: \(name)", options: options) { image in
      image.change(image.l1 + 16, change)
      return isLost ? [2 * table..<3 * table] : []
    }
  }

  private static let tables: [Damage] = [
    l1("beyond the end") { _ in 1 << 63 | 1 << 40 }, l1("unaligned") { $0 + 512 },
    l1("reserved bits") { $0 | 1 << 60 }, l1("low bits") { $0 | 2 },
    l1("lost, found by a scan", options: { $0.scans = true }, isLost: false) { _ in
      1 << 63 | 1 << 40
    },
    Damage("no L1 table, found by a scan", options: { $0.scans = true }) { image in
      // All tables stay, nothing leads to them; those of the first and the third entry lie in order.
      for entry in 0..<4 where image.l2(entry) != 0 { image.set(image.l1 + entry * 8, 8, 0x201) }
      image.set(image.l1 + 8, 8, 0)
      return []
    },
    Damage("an L2 table of ones") { image in
      for place in stride(from: 0, to: 4096, by: 8) { image.set(image.l2(0) + place, 8, .max) }
      return [0..<table]
    },
    Damage("the file ends before a table") { image in
      let last = (0..<4).max { image.l2($0) < image.l2($1) } ?? 0
      image.bytes.removeLast(image.bytes.count - image.l2(last))
      // The data behind that table is gone, too; what of it another table leads to is nothing here.
      return [last * table..<(last + 1) * table]
    },
  ]

  private static func entry(
    _ name: String, _ change: @escaping @Sendable (UInt64) -> UInt64
  ) -> Damage {
    Damage("L2 entry: \(name)") { image in
      image.change(third(image), change)
      return [thirdRange]
    }
  }

  private static let entries: [Damage] = [
    entry("beyond the end") { _ in 1 << 63 | 1 << 40 }, entry("unaligned") { $0 + 512 },
    entry("compressed, beyond the end") { _ in 1 << 62 | 1 << 45 },
    entry("compressed, where other data is") { _ in 1 << 62 | 0x10 },
    Damage("compressed data of ones", .compressed) { image in
      let place = Int(
        CompressedDescriptor(L2Entry(raw: image.get(third(image), 8)), geometry).offset.bytes)
      for byte in place..<place + 16 { image.set(byte, 1, 0xff) }
      return [thirdRange]
    },
    Damage("a compressed descriptor beyond the end", .compressed) { image in
      image.change(third(image)) { $0 | 1 << 40 }
      return [thirdRange]
    },
    Damage("a subcluster that is both", .extended) { image in
      image.change(image.l2(0) + 16 + 8) { $0 | $0 << 32 }
      return [16384..<32768]
    },
    Damage("the file ends within the data") { image in
      let place = image.host(third(image))
      // The clusters of the first range lie one behind the other.
      let data = (0..<25).map { image.host(image.l2(0) + $0 * 8) }
      image.bytes.removeLast(image.bytes.count - place - 1024)
      let first = data.filter { $0 > place }.count
      return [3 * 4096 + 1024..<(4 + first) * 4096] + behind(place, image)
    },
  ]

  /// What other tables lead to, if the file ends at `place`: all of it.
  private static func behind(_ place: Int, _ image: ImageEditor) -> [Range<Int>] {
    [2, 3].map { $0 * table..<($0 + 1) * table }
  }

  private static let geometry = ClusterGeometry(clusterBits: 12, refcountOrder: 4)

  private static let hosts: [Damage] = [
    Damage(
      "a bad sector of data", unreadable: { $0.host(third($0)) + 1024..<$0.host(third($0)) + 1536 }
    ) { _ in
      [3 * 4096 + 1024..<3 * 4096 + 1536]
    },
    Damage("a bad sector of an L2 table", unreadable: { $0.l2(0)..<$0.l2(0) + 512 }) { _ in
      [0..<64 * 4096]
    },
    Damage("a bad sector of the L1 table", unreadable: { $0.l1..<$0.l1 + 512 }) { _ in
      [0..<4 * table]
    },
    Damage(
      "a bad first sector",
      options: {
        $0.clusterSize = 4096
        $0.size = 8 << 20
      }, unreadable: { _ in 0..<512 }
    ) { _ in [] },
    Damage(
      "a bad sector of compressed data", .compressed,
      unreadable: { image in
        let place = Int(
          CompressedDescriptor(L2Entry(raw: image.get(third(image), 8)), geometry).offset.bytes)
        return place & ~511..<(place & ~511) + 512
      }
    ) { image in
      // All pieces that have a byte in that sector.
      let place =
        Int(CompressedDescriptor(L2Entry(raw: image.get(third(image), 8)), geometry).offset.bytes)
        & ~511
      return (0..<4).flatMap { index -> [Range<Int>] in
        let l2 = image.l2(index)
        if l2 == 0 { return [] }
        return (0..<512).compactMap { number in
          let raw = image.get(l2 + number * 8, 8)
          guard raw >> 62 & 1 == 1 else { return nil }
          let found = CompressedDescriptor(L2Entry(raw: raw), geometry)
          let start = Int(found.offset.bytes)
          guard start < place + 512, start + Int(found.length) > place else { return nil }
          let guest = index * table + number * 4096
          return guest..<guest + 4096
        }
      }
    },
  ]

  @Test(arguments: damages)
  func whatIsNotLostReadsAsBefore(damage: Damage) throws {
    let folder = try Folder()
    folder.run("\(damage.base.script); qemu-img convert -O raw x raw")
    var image = ImageEditor(folder.bytes("x"))
    let raw = folder.bytes("raw")
    try #require(!raw.isEmpty)
    let unreadable = damage.unreadable(image)
    var expected = damage.edit(&image)
    expected.sort { $0.lowerBound < $1.lowerBound }
    let file = UnreliableBytes(image.bytes, unreadable)
    let reader = try SalvageReader(file, damage.options)
    #expect(reader.size == UInt64(raw.count), "\(reader.notes)")
    let found = try read(reader)
    let losses = reader.losses.map { Int($0.range.lowerBound)..<Int($0.range.upperBound) }
    let isLost = sectors(losses, raw.count)
    let isExpected = sectors(expected, raw.count)
    let zeros = [UInt8](repeating: 0, count: 512)
    let text = "\(reader.notes), \(reader.losses.prefix(3))"
    var (wrong, surplus, missing) = (0, 0, 0)
    for sector in isLost.indices {
      let isSame = isEqual(found, sector * 512, raw, sector * 512)
      if isLost[sector] {
        if !isEqual(found, sector * 512, zeros, 0) { wrong += 1 }
        if !isExpected[sector] { surplus += 1 }
      } else {
        if !isSame && !isExpected[sector] { wrong += 1 }
        // Of what must be lost, zeros may be there all the same.
        if isExpected[sector], !isEqual(raw, sector * 512, zeros, 0) { missing += 1 }
      }
    }
    #expect(wrong == 0, "\(text)")
    #expect(surplus == 0, "\(text)")
    #expect(missing == 0, "\(text)")
    #expect(losses.isEmpty == expected.isEmpty)
  }

  /// For each sector of a disk, whether it has a part in one of the ranges.
  private func sectors(_ ranges: [Range<Int>], _ count: Int) -> [Bool] {
    var sectors = [Bool](repeating: false, count: count / 512)
    for range in ranges where !range.isEmpty {
      for sector in range.lowerBound / 512...(range.upperBound - 1) / 512
      where sector < sectors.count {
        sectors[sector] = true
      }
    }
    return sectors
  }

  private func isEqual(_ left: [UInt8], _ at: Int, _ right: [UInt8], _ other: Int) -> Bool {
    left.withUnsafeBytes { left in
      right.withUnsafeBytes { right in
        guard at + 512 <= left.count, other + 512 <= right.count, let first = left.baseAddress,
          let second = right.baseAddress
        else { return false }
        return memcmp(first + at, second + other, 512) == 0
      }
    }
  }

  private func read(_ reader: SalvageReader, most: UInt64 = .max) throws -> [UInt8] {
    var bytes: [UInt8] = []
    let buffer = IOBuffer(count: 192 << 10)
    var offset: UInt64 = 0
    let end = min(reader.size, most)
    while offset < end {
      let count = Int(min(UInt64(buffer.count), end - offset))
      _ = reader.read(
        into: UnsafeMutableRawBufferPointer(start: buffer.base, count: count), at: offset)
      bytes += buffer.withBytes { $0.copy(0..<count) }
      offset += UInt64(count)
    }
    return bytes
  }

  @Test(
    arguments: [
      0xffff_ffff_ffff_fff8, 0xffff_ffff_ffff_f000, 1, 0, 0x7fff_ffff_ffff_f000, 1 << 50,
    ] as [UInt64])
  func aSnapshotWhoseTableIsNowhereIsLost(l1Table: UInt64) throws {
    let folder = try Folder()
    folder.run("\(Base.plain.script); qemu-img snapshot -c one x")
    var image = ImageEditor(folder.bytes("x"))
    image.set(image.snapshots, 8, l1Table)
    for (entries, size) in [(4, 8 << 20), (0xffff_ffff, UInt64.max)] as [(UInt64, UInt64)] {
      image.set(image.snapshots + 8, 4, entries)
      image.set(image.snapshots + 48, 8, size)
      let one = SalvageReader.Surroundings(snapshot: { $0.first })
      let reader = try SalvageReader(MemoryBytes(image.bytes), SalvageOptions(), one)
      #expect(try read(reader, most: 8 << 20).allSatisfy { $0 == 0 })
      #expect(reader.losses == [Loss(0..<8 << 20, .noL1Table)])
      #expect(reader.notes.contains { $0.contains("where no table can be") })
    }
  }

  @Test func aSnapshotIsReadWhereTheDiskIsDestroyed() throws {
    let folder = try Folder()
    folder.run(
      """
      \(Base.plain.script); qemu-img snapshot -c one x; qemu-img convert -l one -O raw x raw
      qemu-io -c 'write -P 9 0 1M' x; qemu-img snapshot -c two x
      """)
    var image = ImageEditor(folder.bytes("x"))
    image.set(40, 8, 1 << 50)
    // The second entry of the table is noise; the first one is still found.
    let first = image.snapshots
    let lengths = image.get(first + 12, 2) + image.get(first + 14, 2) + image.get(first + 36, 4)
    image.set((first + 40 + Int(lengths) + 7) & ~7, 8, .max)
    image.set(((first + 40 + Int(lengths) + 7) & ~7) + 32, 8, .max)
    let one = SalvageReader.Surroundings(snapshot: { list in list.first { $0.name == "one" } })
    let reader = try SalvageReader(MemoryBytes(image.bytes), SalvageOptions(), one)
    #expect(try read(reader) == folder.bytes("raw"))
    #expect(reader.losses.isEmpty)
    let none = SalvageReader.Surroundings(snapshot: { list in list.first { $0.name == "two" } })
    #expect(throws: ToolError.salvage(.noSnapshot)) {
      _ = try SalvageReader(MemoryBytes(image.bytes), SalvageOptions(), none)
    }
  }

  @Test func whereNothingIsSaidNothingIsGuessed() throws {
    #expect(throws: ToolError.salvage(.noClusterSize)) {
      _ = try SalvageReader(MemoryBytes([UInt8](repeating: 0, count: 1 << 20)))
    }
    #expect(throws: ToolError.salvage(.noClusterSize)) { _ = try SalvageReader(MemoryBytes([])) }
    var options = SalvageOptions()
    options.clusterSize = 65536
    #expect(throws: ToolError.salvage(.noL1Table(0x6161_6161_6161_6161))) {
      _ = try SalvageReader(MemoryBytes([UInt8](repeating: 0x61, count: 1 << 20)), options)
    }
  }

  @Test func noiseNeverTraps() throws {
    let seed = testSeed("salvage noise", fallback: .random(in: 0...UInt64.max))
    var random = SeededGenerator(seed: seed)
    let folder = try Folder()
    for base in Base.allCases {
      folder.run("rm -f x y; \(base.script)")
      let sound = folder.bytes("x")
      for _ in 0..<80 {
        var image = ImageEditor(sound)
        let places = [0, image.l1, image.l2(0), image.snapshots]
        for _ in 0..<1 + random.below(6) {
          let place = places[random.below(4)] + random.below(128)
          let value = random.next() >> UInt64(random.below(60))
          image.set(min(place, image.bytes.count - 8), 1 + random.below(8), value)
        }
        if random.chance(20) { image.bytes.removeLast(random.below(image.bytes.count)) }
        var options = SalvageOptions()
        options.scans = random.chance(50)
        guard let reader = try? SalvageReader(MemoryBytes(image.bytes), options) else { continue }
        _ = try read(reader, most: 1 << 20)
      }
    }
  }
}

/// An image in memory of which the host cannot read some bytes.
private final class UnreliableBytes: ImageBytes {
  private let memory: MemoryBytes
  private let unreadable: Range<Int>

  init(_ bytes: [UInt8], _ unreadable: Range<Int>) {
    memory = MemoryBytes(bytes)
    self.unreadable = unreadable
  }

  var length: UInt64 { memory.length }

  func read(into buffer: UnsafeMutableRawBufferPointer, at offset: HostOffset) throws(ToolError) {
    let range = Int(offset.bytes)..<Int(offset.bytes) + buffer.count
    if range.overlaps(unreadable) { throw .host(.read(at: offset), errno: .io) }
    try memory.read(into: buffer, at: offset)
  }
}
