import BlockCore
import QCOW2Codec
import QCOW2Format
import QCOW2Tools
import TestTools
import Testing

/// Compactions of images of every feature: what they leave, whole or cut off at any step.
@Suite(.enabled(if: hasQEMU, "needs qemu-img and qemu-io")) struct CompactTests {
  struct Case: Sendable, CustomTestStringConvertible {
    var name: String
    var script: String
    /// Clusters of compressed data may be left half empty.
    var hasCompressed = false
    var testDescription: String { name }
  }

  private static let create = "qemu-img create -q -f qcow2"

  /// Writes in many places, and frees most of them again.
  private static let holes = """
    qemu-io -c 'write -P 1 0 300k' -c 'write -P 2 1M 200k' x
    qemu-img snapshot -c a x; qemu-io -c 'write -P 3 0 200k' -c 'write -P 4 1M 100k' x
    qemu-img snapshot -c b x; qemu-io -c 'write -P 5 100k 300k' -c 'write -z 1M 40k' x
    qemu-img snapshot -c c x; qemu-img snapshot -d a x
    qemu-io -c 'write -P 6 2M 100k' -c 'discard 0 60k' x; qemu-img snapshot -d b x
    """

  private static func script(_ options: String, size: String = "8M") -> String {
    "\(create) -o \(options) x \(size); \(holes)"
  }

  private static func compressed(_ options: String) -> String {
    """
    \(create) raw 8M; qemu-io -c 'write -P 1 0 1M' -c 'write -P 2 3M 300k' raw
    for i in $(seq 1 9 900); do printf "write -P $((i % 250)) ${i}k 1k\\n"; done | qemu-io raw >/dev/null
    qemu-img convert -c -O qcow2 -o \(options) raw x
    qemu-io -c 'write -P 7 0 50k' -c 'write -P 8 100k 300k' x; qemu-img snapshot -c one x
    qemu-io -c 'write -P 9 400k 300k' -c 'discard 3M 100k' x; qemu-img snapshot -c two x
    qemu-img snapshot -d one x; qemu-io -c 'write -P 10 700k 40k' x
    """
  }

  static let cases: [Case] = [
    Case(name: "4 KiB", script: script("cluster_size=4k")),
    Case(name: "512 bytes", script: script("cluster_size=512")),
    Case(name: "512 bytes, version 2", script: script("cluster_size=512,compat=0.10")),
    Case(name: "64 KiB", script: script("cluster_size=64k")),
    Case(name: "version 2", script: script("cluster_size=8k,compat=0.10")),
    Case(name: "lazy", script: script("cluster_size=4k,lazy_refcounts=on")),
    Case(name: "extended", script: script("cluster_size=16k,extended_l2=on")),
    Case(name: "refcounts of 64 bits", script: script("cluster_size=4k,refcount_bits=64")),
    Case(name: "refcounts of 4 bits", script: script("cluster_size=4k,refcount_bits=4")),
    Case(
      name: "refcounts of 1 bit",
      script: """
        \(create) -o cluster_size=4k,refcount_bits=1 x 8M
        qemu-io -c 'write 0 300k' -c 'write 1M 200k' -c 'discard 0 200k' -c 'write 3M 50k' x
        """),
    Case(
      name: "backing file",
      script: """
        \(create) base 8M; qemu-io -c 'write -P 9 0 2M' base
        \(create) -b base -F qcow2 -o cluster_size=4k x 8M; \(holes)
        """),
    Case(
      name: "bitmaps",
      script: """
        \(create) -o cluster_size=4k x 64M; qemu-io -c 'write 0 300k' x
        qemu-img bitmap --add -g 512 x a; qemu-img bitmap --add x b; \(holes)
        qemu-img bitmap --remove x b; qemu-img bitmap --add -g 1k x c; qemu-io -c 'write 40M 100k' x
        qemu-img bitmap --disable x a
        """),
    Case(
      name: "a long L1 table at the end",
      script: """
        \(create) -o cluster_size=512 x 1M; qemu-io -c 'write -P 1 0 300k' x
        qemu-img resize -q x 40M; qemu-io -c 'write -P 2 30M 60k' -c 'discard 0 100k' x
        qemu-img snapshot -c a x; qemu-io -c 'write -P 2 30M 60k' -c 'discard 150k 50k' x
        """),
    Case(
      name: "scattered",
      script: """
        \(create) -o cluster_size=512 x 40M
        for i in $(seq 0 2 400); do echo "discard ${i}b 1b"; done > d
        sed -i 's/\\([0-9]*\\)b/$((\\1*512))/g' d; eval "echo \\"$(cat d)\\"" > e
        qemu-io -c 'write -P 1 0 300k' x >/dev/null; qemu-io x < e >/dev/null
        qemu-img snapshot -c a x; qemu-img resize -q --shrink x 38M 2>/dev/null
        """),
    Case(
      name: "data file",
      script: """
        \(create) -o cluster_size=4k,data_file=outside x 64M
        qemu-io -c 'write 0 300k' -c 'write 20M 4k' -c 'write 40M 4k' -c 'discard 0 64M' -c 'write 60M 4k' x
        qemu-img bitmap --add -g 4k x a; qemu-img bitmap --add x b; qemu-img bitmap --remove x a
        """),
    Case(name: "compressed", script: compressed("cluster_size=4k"), hasCompressed: true),
    Case(name: "compressed, 64 KiB", script: compressed("cluster_size=64k"), hasCompressed: true),
    Case(
      name: "compressed, version 2", script: compressed("cluster_size=4k,compat=0.10"),
      hasCompressed: true),
    Case(
      name: "compressed, zstd, 16 KiB extended",
      script: compressed("cluster_size=16k,compression_type=zstd,extended_l2=on"),
      hasCompressed: true),
    Case(
      name: "compressed, refcounts of 4 bits",
      script: compressed("cluster_size=4k,refcount_bits=4"),
      hasCompressed: true),
    Case(
      name: "leaks",
      script: script("cluster_size=4k") + "; truncate -s +333k x"),
  ]

  private static func image(_ test: Case, _ folder: Folder) throws -> [UInt8] {
    folder.run(test.script)
    let bytes = folder.bytes("x")
    try #require(!bytes.isEmpty)
    return bytes
  }

  @Test(arguments: cases)
  func theFileIsAsSmallAsWhatItHas(case test: Case) throws {
    let folder = try Folder()
    let original = try Self.image(test, folder)
    let view = try ContentView(original)
    for most in [nil, 7, 100] {
      let bytes = MemoryBytes(original)
      let expected = try ImageCompact(bytes).estimate()
      #expect(bytes.bytes == original)
      let outcome = try ImageCompact(bytes, most: most).run()
      #expect(outcome.before == UInt64(original.count))
      #expect(outcome.after == bytes.length)
      #expect(outcome.after < outcome.before)
      try checkSound(bytes.bytes, view, "at most \(most ?? 0)")
      let free = freeClusters(bytes.bytes)
      if test.hasCompressed {
        #expect(free.count <= 2, "\(free), expected \(expected)")
      } else {
        #expect(outcome.after == expected.after, "at most \(most ?? 0)")
        #expect(free.isEmpty)
      }
      try folder.write(bytes.bytes, "x")
      #expect(folder.run("qemu-img check x").status == 0)
      let once = bytes.bytes
      if test.hasCompressed { continue }
      #expect(try ImageCompact(bytes).run().moved == 0)
      #expect(bytes.bytes == once)
    }
  }

  @Test(arguments: cases)
  func aCrashAtAnyStepLosesNothing(case test: Case) throws {
    let seed = testSeed("compact crash", fallback: .random(in: 0...UInt64.max))
    var random = SeededGenerator(seed: seed)
    let folder = try Folder()
    let original = try Self.image(test, folder)
    let view = try ContentView(original)
    let most = 64
    let whole = CrashBytes(original)
    _ = try ImageCompact(whole, most: most).run()
    for limit in limits(whole.steps, &random) {
      let crashing = CrashBytes(original, limit: limit)
      #expect(throws: ToolError.self) { _ = try ImageCompact(crashing, most: most).run() }
      let state = crashing.cut(&random)
      let text = "cut at \(limit) of \(whole.steps), seed \(seed)"
      var findings: [String] = []
      let found = try ImageCheck.run(MemoryBytes(state)) { findings.append($0.message) }
      // An image with leaks has its refcounts counted anew first, and is dirty meanwhile.
      let isDirty = ImageEditor(state).get(4, 4) >= 3 && ImageEditor(state).get(72, 8) & 1 == 1
      #expect(found.corruptions == 0 || isDirty, "\(text): \(findings.prefix(3))")
      #expect(try ContentView(state) == view, "\(text)")
      // After an error that is no power cut, the file has what was written.
      let isCurrentDirty = ImageEditor(crashing.current).get(72, 8) & 1 == 1
      let corruptions = try ImageCheck.run(MemoryBytes(crashing.current)).corruptions
      #expect(corruptions == 0 || isCurrentDirty, "\(text)")
      #expect(try ContentView(crashing.current) == view, "\(text)")
      let again = MemoryBytes(state)
      _ = try ImageCompact(again).run()
      try checkSound(again.bytes, view, text)
      if !test.hasCompressed { #expect(freeClusters(again.bytes).isEmpty, "\(text)") }
    }
  }

  /// All steps, or some of very many.
  private func limits(_ steps: Int, _ random: inout SeededGenerator) -> [Int] {
    if steps <= 40 { return Array(1...steps) }
    return (0..<40).map { _ in 1 + random.below(steps) }
  }

  private func checkSound(_ bytes: [UInt8], _ view: ContentView, _ text: String) throws {
    var findings: [String] = []
    let result = try ImageCheck.run(MemoryBytes(bytes)) { findings.append($0.message) }
    #expect(result.exitCode == 0, "\(text): \(findings.prefix(3))")
    #expect(try ContentView(bytes) == view, "\(text)")
  }

  /// The clusters of the file whose refcount is 0, by the bytes of the refcount structures.
  private func freeClusters(_ bytes: [UInt8]) -> [Int] {
    let image = ImageEditor(bytes)
    let order = image.get(4, 4) < 3 ? 4 : Int(image.get(96, 4))
    let perBlock = (image.clusterSize * 8) >> order
    return (0..<bytes.count / image.clusterSize).filter { cluster in
      let block = image.refcountBlock(cluster / perBlock)
      if block == 0 { return true }
      let bit = (cluster % perBlock) << order
      if order < 3 {
        return image.get(block + bit / 8, 1) >> UInt64(bit % 8) & ((1 << (1 << order)) - 1) == 0
      }
      return image.get(block + bit / 8, (1 << order) / 8) == 0
    }
  }

  @Test func anImageWithErrorsIsRefusedAndLeftAlone() throws {
    let folder = try Folder()
    folder.run(Self.script("cluster_size=4k"))
    let sound = folder.bytes("x")
    var corrupt = ImageEditor(sound)
    corrupt.set(72, 8, 2)
    var low = ImageEditor(sound)
    low.setRefcount(low.l2(0), 0)
    for (image, text) in [(corrupt, "marked corrupt"), (low, "refcount is 0")] {
      let bytes = MemoryBytes(image.bytes)
      let error = try #require(throws: ToolError.self) { _ = try ImageCompact(bytes).run() }
      #expect(error.message.contains(text))
      #expect(error.message.contains("qublk check -r all"))
      #expect(bytes.bytes == image.bytes)
    }
  }

  @Test func aDirtyImageIsCountedAnewFirst() throws {
    let folder = try Folder()
    folder.run(Self.script("cluster_size=4k,lazy_refcounts=on"))
    var image = ImageEditor(folder.bytes("x"))
    let view = try ContentView(image.bytes)
    image.setRefcount(image.l2(0), 0)
    image.set(72, 8, 1)
    let bytes = MemoryBytes(image.bytes)
    _ = try ImageCompact(bytes).run()
    try checkSound(bytes.bytes, view, "dirty")
    #expect(freeClusters(bytes.bytes).isEmpty)
  }

  @Test func aBlockDeviceKeepsItsLength() throws {
    let folder = try Folder()
    folder.run(Self.script("cluster_size=4k"))
    let original = folder.bytes("x")
    let view = try ContentView(original)
    let spare = [UInt8](repeating: 0xee, count: 1 << 20)
    let bytes = MemoryBytes(original + spare, isBlockDevice: true)
    let outcome = try ImageCompact(bytes).run()
    #expect(bytes.bytes.count == original.count + spare.count)
    #expect(outcome.isBlockDevice)
    #expect(outcome.after < outcome.before)
    #expect(freeClusters(Array(bytes.bytes.prefix(Int(outcome.after)))).isEmpty)
    try checkSound(bytes.bytes, view, "block device")
  }

  private func secret(_ text: String) throws -> Secret {
    let bytes = Array(text.utf8)
    return try Secret(count: bytes.count) { (target) throws(LUKSError) in
      target.copyBytes(from: bytes)
    }
  }

  @Test func dataThatIsEncryptedByItsPlaceIsEncryptedAnew() throws {
    let folder = try Folder()
    folder.run(
      """
      s="--object secret,id=s,data=abc"; o="--image-opts driver=qcow2,file.filename=x,encrypt.key-secret=s"
      luks=encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,cluster_size=4k
      for try in $(seq 40); do qemu-img create -q $s -f qcow2 -o $luks x 8M && break; done
      qemu-io $s -c 'write -P 1 0 300k' -c 'write -P 2 1M 200k' $o
      qemu-img snapshot $s -c a $o; qemu-io $s -c 'write -P 3 0 200k' $o
      qemu-img convert $s -l a -O raw $o old; qemu-img snapshot $s -c b $o
      qemu-io $s -c 'write -P 5 100k 300k' -c 'discard 1M 100k' -c 'write -P 6 2M 100k' $o
      qemu-img snapshot $s -d b $o; qemu-img convert $s -O raw $o raw
      """)
    let bytes = MemoryBytes(folder.bytes("x"))
    let original = bytes.bytes
    let error = try #require(throws: ToolError.self) { _ = try ImageCompact(bytes).run() }
    #expect(error == .compact(.secretMissing))
    let wrong = try #require(throws: ToolError.self) {
      _ = try ImageCompact(bytes, secret: secret("abd")).run()
    }
    #expect(wrong.message.contains("passphrase"))
    #expect(bytes.bytes == original)
    let outcome = try ImageCompact(bytes, secret: secret("abc")).run()
    #expect(outcome.after < outcome.before)
    #expect(freeClusters(bytes.bytes).isEmpty)
    try folder.write(bytes.bytes, "x")
    let answer = folder.run(
      """
      s="--object secret,id=s,data=abc"; o="--image-opts driver=qcow2,file.filename=x,encrypt.key-secret=s"
      qemu-img check -q $s $o && qemu-img convert $s -O raw $o new && cmp raw new &&
      qemu-img convert $s -l a -O raw $o new && cmp old new
      """)
    #expect(answer.status == 0, "\(answer.err)")
  }
}

/// What the disk, each snapshot and each bitmap of an image have, wherever it lies.
struct ContentView: Equatable {
  private var disks: [[Int: UInt64]] = []
  private var texts: [[UInt8]] = []
  private var bitmaps: [[UInt64]] = []

  init(_ file: [UInt8]) throws {
    // A file may end within its last cluster.
    let bytes = file + [UInt8](repeating: 0, count: 1 << 17)
    let image = ImageEditor(bytes)
    let head = try HeaderCluster(reading: MemoryBytes(file))
    let reader = Reader(bytes: bytes, image: image, head: head)
    disks.append(reader.disk(l1: image.l1, entries: Int(image.get(36, 4))))
    var place = image.snapshots
    for _ in 0..<Int(image.get(60, 4)) {
      disks.append(
        reader.disk(l1: Int(image.get(place, 8)), entries: Int(image.get(place + 8, 4))))
      let lengths = image.get(place + 12, 2) + image.get(place + 14, 2) + image.get(place + 36, 4)
      let end = (place + 40 + Int(lengths) + 7) & ~7
      texts.append(Array(bytes[place + 8..<end]))
      place = end
    }
    texts.append(Array((head.backingFile ?? "").utf8) + Array((head.dataFile ?? "").utf8))
    guard case .success(let location) = head.trustedBitmaps else { return }
    for item in try BitmapList.read(MemoryBytes(bytes), head, location) {
      texts.append(Array(item.name.utf8) + [item.entry.granularityBits])
      let table = Int(item.entry.table.bytes)
      bitmaps.append(
        (0..<Int(item.entry.tableSize)).map { index in
          let entry = image.get(table + index * 8, 8)
          let host = Int(entry & ImageEditor.offsetMask)
          return host == 0 ? entry : reader.hash(1, host..<host + image.clusterSize)
        })
    }
  }

  private struct Reader {
    let bytes: [UInt8]
    let image: ImageEditor
    let head: HeaderCluster

    func disk(l1: Int, entries: Int) -> [Int: UInt64] {
      var disk: [Int: UInt64] = [:]
      let isExtended = head.header.incompatible.contains(.extendedL2)
      let step = isExtended ? 16 : 8
      let perTable = image.clusterSize / step
      for index in 0..<entries {
        let table = Int(image.get(l1 + index * 8, 8) & ImageEditor.offsetMask)
        if table == 0 { continue }
        for cluster in 0..<perTable {
          let place = table + cluster * step
          let bitmap = isExtended ? image.get(place + 8, 8) : 0
          disk[index * perTable + cluster] = contents(image.get(place, 8), bitmap)
        }
      }
      return disk
    }

    /// Nil for an entry that says nothing.
    private func contents(_ entry: UInt64, _ bitmap: UInt64) -> UInt64? {
      if entry | bitmap == 0 { return nil }
      if entry >> 62 & 1 == 1 {
        let found = CompressedDescriptor(L2Entry(raw: entry), head.geometry)
        let start = Int(found.offset.bytes)
        return hash(2, start..<start + Int(found.length))
      }
      let host = Int(entry & ImageEditor.offsetMask)
      if head.header.incompatible.contains(.externalDataFile) { return entry }
      return hash(entry & 1 ^ bitmap, host..<(host + (host == 0 ? 0 : image.clusterSize)))
    }

    /// Bytes behind the end of the file are zeros.
    func hash(_ start: UInt64, _ range: Range<Int>) -> UInt64 {
      var result = start ^ 0xcbf2_9ce4_8422_2325
      bytes.withUnsafeBytes { raw in
        for place in stride(from: range.lowerBound, to: range.upperBound, by: 8) {
          var word: UInt64 = 0
          if place + 8 <= min(range.upperBound, raw.count) {
            word = raw.loadUnaligned(fromByteOffset: place, as: UInt64.self)
          } else {
            for byte in place..<max(place, min(place + 8, range.upperBound, raw.count)) {
              word |= UInt64(raw[byte]) << UInt64(8 * (byte - place))
            }
          }
          result = (result ^ word) &* 0x100_0000_01b3
          result ^= result >> 29
        }
      }
      return result
    }
  }
}
