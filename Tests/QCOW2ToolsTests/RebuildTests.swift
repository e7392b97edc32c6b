import BlockCore
import Glibc
import QCOW2Tools
import TestTools
import Testing

/// How the refcounts of a sound image are ruined.
enum Ruin: String, CaseIterable, Sendable {
  /// Only the dirty bit is set.
  case nothing
  /// What lazy refcounts leave behind: they have not been written since some time.
  case stale
  case zeros, ones, noise
  /// COPIED flags of the active disk as well.
  case flags
  /// No refcount table entry leads to a block.
  case noBlocks
  /// Entries that cannot be used: not aligned, reserved bits, twice the same, in the header.
  case badBlocks

  func apply(to image: inout ImageEditor, seed: UInt64) {
    var random = SeededGenerator(seed: seed)
    image.set(72, 8, image.get(72, 8) | 1)
    let table = image.refcountTable
    let entries = Int(image.get(56, 4)) * image.clusterSize / 8
    let blocks = (0..<entries).map { image.refcountBlock($0) }.filter { $0 != 0 }
    switch self {
    case .nothing: break
    case .stale:
      for block in blocks {
        for _ in 0..<40 {
          let place = block + Int(random.next() % UInt64(image.clusterSize))
          if place < image.bytes.count { image.bytes[place] = 0 }
        }
      }
    case .zeros: fill(blocks, &image) { 0 }
    case .ones: fill(blocks, &image) { 0xff }
    case .noise: fill(blocks, &image) { UInt8(truncatingIfNeeded: random.next()) }
    case .flags:
      fill(blocks, &image) { UInt8(truncatingIfNeeded: random.next()) }
      flipFlags(&image, &random)
    case .noBlocks: for index in 0..<entries { image.set(table + index * 8, 8, 0) }
    case .badBlocks:
      let bad: [UInt64] = [0x200, UInt64(blocks[0]) | 1, UInt64(blocks[0]), 1 << 50]
      for (index, value) in bad.enumerated() where index < entries {
        image.set(table + index * 8, 8, value)
      }
    }
  }

  private func fill(_ blocks: [Int], _ image: inout ImageEditor, _ byte: () -> UInt8) {
    for block in blocks {
      for place in block..<min(block + image.clusterSize, image.bytes.count) {
        image.bytes[place] = byte()
      }
    }
  }

  private func flipFlags(_ image: inout ImageEditor, _ random: inout SeededGenerator) {
    for index in 0..<Int(image.get(36, 4)) {
      let table = image.l2(index)
      guard table != 0 else { continue }
      if random.next() % 2 == 0 { image.change(image.l1 + index * 8) { $0 ^ ImageEditor.copied } }
      let isExtended = image.get(72, 8) & 16 != 0
      for place in stride(from: table, to: table + image.clusterSize, by: isExtended ? 16 : 8)
      where place < image.bytes.count {
        let entry = image.get(place, 8)
        if entry & ImageEditor.offsetMask == 0 || random.next() % 2 == 0 { continue }
        image.set(place, 8, entry ^ ImageEditor.copied)
      }
    }
  }
}

@Suite(.enabled(if: hasQEMU, "needs qemu-img and qemu-io")) struct RebuildTests {
  /// Made once; the tests only copy.
  private static let corpus = Result { () throws -> (folder: Folder, names: [String]) in
    let folder = try Folder()
    folder.run(Corpus.script)
    let names = folder.run("ls *.qcow2").out.split(separator: "\n").map(String.init)
    return (folder, names.filter { !Corpus.withoutBacking.contains($0) && $0 != "v2.qcow2" })
  }

  private static let secret = "--object secret,id=s,data=abc --image-opts driver=qcow2,"

  /// How qemu-img is told of an image.
  private static func spelled(_ file: String, like name: String) -> String {
    Corpus.encrypted.contains(name)
      ? secret + "file.filename=\(file),encrypt.key-secret=s" : file
  }

  @Test(arguments: Ruin.allCases)
  func ruinedRefcountsOfEveryFeatureAreRebuilt(ruin: Ruin) throws {
    let (folder, names) = try Self.corpus.get()
    #expect(names.count >= 25)
    // A third of the images each time; all of them meet all kinds of damage over a few runs.
    let seed = testSeed("rebuild \(ruin)", fallback: .random(in: 0...UInt64.max))
    for (number, name) in names.enumerated() where (UInt64(number) &+ seed) % 3 == 0 {
      let sound = folder.bytes(name)
      var image = ImageEditor(sound)
      // The dirty image of the corpus is not sound.
      if image.get(72, 8) & 1 == 1 { continue }
      ruin.apply(to: &image, seed: seed &+ UInt64(number))
      let file = "ruined-\(ruin.rawValue).img"
      try folder.write(image.bytes, file)
      let bytes = try FileBytes(path: "\(folder.path)/\(file)", access: .readWrite)
      _ = try RefcountRebuild.run(bytes)
      let check = folder.run("qemu-img check \(Self.spelled(file, like: name))")
      #expect(check.status == 0, "\(ruin) \(name): \(check.out) \(check.err)")
      for command in ["qemu-img snapshot -l", "qemu-img info -U --output=json"] {
        let facts = "| grep -v -e actual-size -e filename"
        let before = folder.run("\(command) \(name) \(facts)")
        let after = folder.run("\(command) \(file) \(facts)")
        #expect(before.out == after.out, "\(ruin) \(name)")
      }
      if !Corpus.encrypted.contains(name) {
        let same = folder.run("qemu-img compare \(name) \(file)")
        #expect(same.status == 0, "\(ruin) \(name): \(same.out) \(same.err)")
      }
      let result = ImageEditor(folder.bytes(file))
      #expect(result.get(72, 8) == ImageEditor(sound).get(72, 8), "\(ruin) \(name)")
      #expect(result.get(80, 8) == ImageEditor(sound).get(80, 8), "lazy_refcounts stays")
      #expect(GuestView(result.bytes) == GuestView(sound), "\(ruin) \(name)")
    }
  }

  /// A crash between two halves of an extended entry leaves it, in an image that is marked dirty or not.
  @Test(arguments: [false, true])
  func aBitmapOfACompressedClusterIsCleared(isDirty: Bool) throws {
    let folder = try Folder()
    folder.run(
      """
      qemu-img create -q -f raw r 4M; qemu-io -f raw -c 'write -P 1 0 1M' r
      qemu-img convert -c -f raw -O qcow2 -o cluster_size=16k,extended_l2=on r x
      """)
    let sound = folder.bytes("x")
    var image = ImageEditor(sound)
    let entry = image.l2(0)
    try #require(image.get(entry, 8) >> 62 == 1)
    image.set(entry + 8, 8, 0xff)
    if isDirty { image.set(72, 8, image.get(72, 8) | 1) }
    let bytes = MemoryBytes(image.bytes)
    let before = try ImageCheck.run(bytes)
    #expect(before.corruptions == 1 && before.leaks == 0)
    let none = MemoryBytes(image.bytes)
    _ = try RefcountRebuild.repair(none, .leaks)
    #expect(try ImageCheck.run(none).corruptions == 1, "-r leaks changes no entries")
    let changes = isDirty ? try RefcountRebuild.run(bytes) : try RefcountRebuild.repair(bytes, .all)
    #expect(changes.entries == 1)
    #expect(bytes.bytes == sound)
  }
}

/// All that the tables of an image lead to, snapshots included, whatever its refcounts say.
struct GuestView: Equatable {
  private var hash: UInt64 = 0xcbf2_9ce4_8422_2325

  init(_ bytes: [UInt8]) {
    let image = ImageEditor(bytes)
    bytes.withUnsafeBytes { raw in
      add(raw, image, l1: image.l1, entries: Int(image.get(36, 4)))
      var place = image.snapshots
      for _ in 0..<Int(image.get(60, 4)) {
        add(raw, image, l1: Int(image.get(place, 8)), entries: Int(image.get(place + 8, 4)))
        let lengths = image.get(place + 12, 2) + image.get(place + 14, 2) + image.get(place + 36, 4)
        let end = place + 40 + Int(lengths)
        add(raw, place..<end)
        place = (end + 7) & ~7
      }
    }
  }

  private mutating func add(_ value: UInt64) { hash = (hash ^ value) &* 0x100_0000_01b3 }

  private mutating func add(_ raw: UnsafeRawBufferPointer, _ range: Range<Int>) {
    var place = range.lowerBound
    while place + 8 <= range.upperBound {
      let isInFile = place + 8 <= raw.count
      add(isInFile ? raw.loadUnaligned(fromByteOffset: place, as: UInt64.self) : 0)
      place += 8
    }
  }

  private mutating func add(
    _ raw: UnsafeRawBufferPointer, _ image: ImageEditor, l1: Int, entries: Int
  ) {
    func get(_ place: Int) -> UInt64 {
      UInt64(bigEndian: raw.loadUnaligned(fromByteOffset: place, as: UInt64.self))
    }
    let features = get(72)
    let cluster = image.clusterSize
    for index in 0..<entries {
      let table = Int(get(l1 + index * 8) & ImageEditor.offsetMask)
      add(UInt64(table))
      guard table != 0 else { continue }
      for place in stride(from: table, to: min(table + cluster, raw.count - 7), by: 8) {
        let entry = get(place)
        if entry == 0 { continue }
        add(UInt64(place))
        if features & 16 != 0 && place % 16 == 8 {
          add(entry)
          continue
        }
        add(entry & ~ImageEditor.copied)
        let host = Int(entry & ImageEditor.offsetMask)
        guard entry >> 62 & 1 == 0, features & 4 == 0, host != 0 else { continue }
        add(raw, host..<(host + cluster))
      }
    }
  }
}
