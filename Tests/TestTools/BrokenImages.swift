/// The images that are broken by hand, and how.
package struct BrokenImage: Sendable, CustomStringConvertible {
  /// How our exit code compares with qemu-img's.
  package enum Verdict: Sendable {
    /// The same.
    case same
    /// Ours is the first, QEMU's the second, and the text says why.
    case ours(Int32, theirs: Int32, String)
  }

  package let description: String
  package let image: Base
  package let verdict: Verdict
  package let edit: @Sendable (inout ImageEditor) -> Void

  init(
    _ description: String, _ image: Base = .plain, _ verdict: Verdict = .same,
    _ edit: @escaping @Sendable (inout ImageEditor) -> Void
  ) {
    self.description = description
    self.image = image
    self.verdict = verdict
    self.edit = edit
  }

  /// The images that are sound before they are edited.
  package enum Base: String, CaseIterable, Sendable {
    case plain, compressed, bitmaps, extended, v2, narrow, data

    package var script: String {
      let create = "qemu-img create -q -f qcow2"
      switch self {
      case .plain:
        return """
          \(create) -o cluster_size=4k plain 8M
          qemu-io -c 'write -P 1 0 100k' -c 'write -P 2 4M 100k' -c 'write -z 200k 40k' plain
          qemu-img snapshot -c one plain; qemu-io -c 'write -P 3 0 40k' plain
          qemu-img snapshot -c two plain; qemu-io -c 'write -P 3 20k 40k' -c 'write 6M 40k' plain
          """
      case .compressed:
        return """
          \(create) raw 8M; qemu-io -c 'write -P 1 0 100k' raw
          qemu-img convert -c -O qcow2 -o cluster_size=4k raw compressed
          qemu-io -c 'write 100k 4k' compressed
          """
      case .bitmaps:
        return """
          \(create) -o cluster_size=4k bitmaps 8M
          qemu-img bitmap --add -g 512 bitmaps a; qemu-img bitmap --add bitmaps b
          qemu-io -c 'write 0 1M' bitmaps
          """
      case .extended:
        return """
          \(create) -o cluster_size=16k,extended_l2=on extended 32M
          qemu-io -c 'write 1k 512' -c 'write 64k 64k' -c 'write -z 100k 512' extended
          """
      case .v2:
        return "\(create) -o cluster_size=4k,compat=0.10 v2 8M; qemu-io -c 'write 0 100k' v2"
      case .narrow:
        return """
          \(create) -o cluster_size=4k,refcount_bits=1 narrow 8M
          qemu-io -c 'write 0 100k' narrow
          """
      case .data:
        return """
          \(create) -o cluster_size=4k,data_file=outside data 8M
          qemu-io -c 'write 0 100k' data
          """
      }
    }
  }
}

private let opensNothing = "QEMU does not open the image at all"

/// All of them.
package let brokenImages: [BrokenImage] =
  refcountDamage + entryDamage + headerDamage + snapshotDamage + otherDamage

private let refcountDamage: [BrokenImage] = [
  BrokenImage("nothing is broken") { _ in },
  BrokenImage("refcount of data is zero") { $0.setRefcount($0.host($0.dataEntry()), 0) },
  BrokenImage("refcount of data is too high") { $0.setRefcount($0.host($0.dataEntry()), 7) },
  BrokenImage("refcount of shared data is too high") {
    $0.setRefcount($0.host($0.dataEntry(refcount: 3)), 4)
  },
  BrokenImage("refcount of shared data is too low") {
    $0.setRefcount($0.host($0.dataEntry(refcount: 3)), 2)
  },
  BrokenImage("refcount of shared data is one") {
    $0.setRefcount($0.host($0.dataEntry(refcount: 3)), 1)
  },
  BrokenImage("refcount of the header is zero") { $0.setRefcount(0, 0) },
  BrokenImage("refcount of the header is two") { $0.setRefcount(0, 2) },
  BrokenImage("refcount of the L1 table is zero") { $0.setRefcount($0.l1, 0) },
  BrokenImage("refcount of the refcount table is zero") { $0.setRefcount($0.refcountTable, 0) },
  BrokenImage("refcount of the refcount block is zero") { $0.setRefcount($0.refcountBlock(0), 0) },
  BrokenImage("refcount of an L2 table is five") { $0.setRefcount($0.l2(0), 5) },
  BrokenImage("refcount of an L2 table is zero") { $0.setRefcount($0.l2(0), 0) },
  BrokenImage("refcount of the snapshot table is zero") { $0.setRefcount($0.snapshots, 0) },
  BrokenImage("refcount of a snapshot's L1 table is three") {
    $0.setRefcount(Int($0.get($0.snapshots, 8)), 3)
  },
  BrokenImage("a cluster that nothing refers to has a refcount") {
    let end = ($0.bytes.count + 4095) / 4096 * 4096
    $0.bytes += [UInt8](repeating: 0, count: end + 4096 - $0.bytes.count)
    $0.setRefcount(end, 1)
  },
  BrokenImage("a cluster beyond the end of the file has a refcount") {
    $0.setRefcount(($0.bytes.count + 4095) / 4096 * 4096 + 8192, 1)
  },
  BrokenImage("refcount block is not aligned") { $0.change($0.refcountTable) { $0 + 512 } },
  BrokenImage("refcount block is beyond the end") { $0.set($0.refcountTable, 8, 1 << 40) },
  BrokenImage("refcount block is at the top of the offsets") {
    $0.set($0.refcountTable, 8, UInt64.max & ~0xfff)
  },
  BrokenImage("refcount table entry has reserved bits") { $0.change($0.refcountTable) { $0 | 8 } },
  BrokenImage("refcount table is empty") { $0.set($0.refcountTable, 8, 0) },
  BrokenImage("two refcount table entries have the same block") {
    $0.set($0.refcountTable + 8, 8, UInt64($0.refcountBlock(0)))
  },
  BrokenImage("refcount block is the L1 table") { $0.set($0.refcountTable, 8, UInt64($0.l1)) },
  BrokenImage("refcount block is the refcount table") {
    $0.set($0.refcountTable, 8, UInt64($0.refcountTable))
  },
  BrokenImage("refcount block is the header") { $0.set($0.refcountTable + 8, 8, 0x200) },
  BrokenImage("one-bit refcounts: two references", .narrow) {
    let entry = $0.l2(0)
    $0.set(entry + 8, 8, $0.get(entry, 8))
  },
  BrokenImage("one-bit refcounts: a refcount is zero", .narrow) {
    $0.bytes[$0.refcountBlock(0)] &= 0xf7
  },
  BrokenImage("one-bit refcounts: a leak", .narrow) {
    $0.bytes += [UInt8](repeating: 0, count: 40 * 4096)
    $0.bytes[$0.refcountBlock(0) + 8] = 0x80
  },
]

private let entryDamage: [BrokenImage] = [
  BrokenImage("COPIED of data is clear") { $0.change($0.dataEntry()) { $0 ^ 1 << 63 } },
  BrokenImage("COPIED of shared data is set") {
    $0.change($0.dataEntry(refcount: 3)) { $0 ^ 1 << 63 }
  },
  BrokenImage("COPIED of an L2 table is clear") { $0.change($0.l1) { $0 ^ 1 << 63 } },
  BrokenImage("COPIED of a shared L2 table is set") { $0.change($0.l1 + 16) { $0 ^ 1 << 63 } },
  BrokenImage("COPIED in a snapshot's tables does not matter") {
    $0.change(Int($0.get($0.snapshots, 8))) { $0 ^ 1 << 63 }
  },
  BrokenImage("L2 table is not aligned") { $0.change($0.l1) { $0 + 512 } },
  BrokenImage("L2 table is beyond the end") { $0.set($0.l1, 8, 1 << 63 | 1 << 40) },
  BrokenImage("L2 table is at the limit of the format") {
    $0.set($0.l1, 8, 1 << 63 | 0x00ff_ffff_ffff_f000)
  },
  BrokenImage("L1 entry has a reserved low bit") { $0.change($0.l1) { $0 | 4 } },
  BrokenImage("L1 entry has a reserved high bit") { $0.change($0.l1) { $0 | 1 << 56 } },
  BrokenImage("L1 entry is only COPIED") { $0.set($0.l1 + 8, 8, 1 << 63) },
  BrokenImage("L1 entry is only a reserved bit") { $0.set($0.l1 + 8, 8, 1 << 60) },
  BrokenImage("L2 table is the L1 table") { $0.set($0.l1, 8, 1 << 63 | UInt64($0.l1)) },
  BrokenImage("L2 table is the refcount table") {
    $0.set($0.l1, 8, 1 << 63 | UInt64($0.refcountTable))
  },
  BrokenImage("two L1 entries have the same L2 table") {
    $0.set($0.l1 + 8, 8, $0.get($0.l1, 8))
  },
  BrokenImage("data is not aligned") { $0.change($0.dataEntry()) { $0 + 512 } },
  BrokenImage("data is beyond the end") { $0.set($0.dataEntry(), 8, 1 << 63 | 1 << 30) },
  BrokenImage("data is at the limit of the format") {
    $0.set($0.dataEntry(), 8, 1 << 63 | 0x00ff_ffff_ffff_f000)
  },
  BrokenImage("L2 entry has a reserved low bit") { $0.change($0.dataEntry()) { $0 | 2 } },
  BrokenImage("L2 entry has a reserved high bit") { $0.change($0.dataEntry()) { $0 | 1 << 57 } },
  BrokenImage("unallocated L2 entry has a reserved bit") { $0.set($0.l2(0) + 4088, 8, 1 << 58) },
  BrokenImage("zero entry has a reserved bit") { $0.set($0.l2(0) + 4088, 8, 3) },
  BrokenImage("unallocated L2 entry is COPIED") { $0.set($0.l2(0) + 4088, 8, 1 << 63) },
  BrokenImage("data is its own L2 table") {
    $0.set($0.dataEntry(), 8, 1 << 63 | UInt64($0.l2(0)))
  },
  BrokenImage("data is the refcount block") {
    $0.set($0.dataEntry(), 8, 1 << 63 | UInt64($0.refcountBlock(0)))
  },
  BrokenImage("two entries have the same data, refcount one") {
    $0.set($0.l2(0) + 4088, 8, $0.get($0.dataEntry(), 8))
  },
  BrokenImage("two entries have the same data, all else is right") {
    let entry = $0.dataEntry()
    $0.change(entry) { $0 & ~(1 << 63) }
    $0.set($0.l2(0) + 4088, 8, $0.get(entry, 8))
    $0.setRefcount($0.host(entry), 2)
  },
  BrokenImage("data is an L2 table, and the refcount accounts for it") {
    $0.set($0.l2(0) + 4088, 8, UInt64($0.l2(0)))
    $0.setRefcount($0.l2(0), 2)
    $0.change($0.l1) { $0 & ~(1 << 63) }
  },
  BrokenImage("an L2 table is gone") { $0.set($0.l1, 8, 0) },
  BrokenImage("a data cluster is gone") { $0.set($0.dataEntry(), 8, 0) },
  BrokenImage("version 2: bit 0 of an entry", .v2, .ours(2, theirs: 0, "it is reserved")) {
    $0.change($0.l2(0)) { $0 | 1 }
  },
  BrokenImage("version 2: refcount is zero", .v2) { $0.setRefcount($0.host($0.l2(0)), 0) },
]

private let headerDamage: [BrokenImage] = [
  BrokenImage("magic") { $0.bytes[3] = 0xfa },
  BrokenImage("version 1") { $0.set(4, 4, 1) },
  BrokenImage("version 4") { $0.set(4, 4, 4) },
  BrokenImage(
    "version 2 of a version 3 image", .plain,
    .ours(2, theirs: 0, "its zero entries have a reserved bit")
  ) { $0.set(4, 4, 2) },
  BrokenImage("cluster_bits is 8") { $0.set(20, 4, 8) },
  BrokenImage("cluster_bits is 22") { $0.set(20, 4, 22) },
  BrokenImage("cluster_bits is 2^32 - 1") { $0.set(20, 4, UInt64(UInt32.max)) },
  BrokenImage("cluster_bits is one less") { $0.set(20, 4, 11) },
  BrokenImage("refcount_order is 7") { $0.set(96, 4, 7) },
  BrokenImage("refcount_order is 6 where it was 4") { $0.set(96, 4, 6) },
  BrokenImage("header_length is 96") { $0.set(100, 4, 96) },
  BrokenImage("header_length is longer than a cluster") { $0.set(100, 4, 4104) },
  BrokenImage("header_length is 2^32 - 1") { $0.set(100, 4, UInt64(UInt32.max)) },
  BrokenImage("backing_file_offset is beyond the first cluster") { $0.set(8, 8, 4097) },
  BrokenImage("backing_file_size is 1024") {
    $0.set(8, 8, 1024)
    $0.set(16, 4, 1024)
  },
  BrokenImage("backing file's name leaves the first cluster") {
    $0.set(8, 8, 4000)
    $0.set(16, 4, 97)
  },
  BrokenImage("size needs a longer L1 table") { $0.set(24, 8, 1 << 33) },
  BrokenImage("size is 2^63") { $0.set(24, 8, 1 << 63) },
  BrokenImage("size is 2^64 - 1") { $0.set(24, 8, UInt64.max) },
  BrokenImage("crypt_method is 3") { $0.set(32, 4, 3) },
  BrokenImage("l1_size is zero") { $0.set(36, 4, 0) },
  BrokenImage("l1_size is one too many") { $0.set(36, 4, 5) },
  BrokenImage("l1_size is 2^32 - 1") { $0.set(36, 4, UInt64(UInt32.max)) },
  BrokenImage("l1_size is the most that is allowed") { $0.set(36, 4, 1 << 22) },
  BrokenImage("L1 table is not aligned") { $0.set(40, 8, UInt64($0.l1 + 512)) },
  BrokenImage("L1 table is at 0") { $0.set(40, 8, 0) },
  BrokenImage("L1 table is beyond the end") { $0.set(40, 8, 1 << 40) },
  BrokenImage("L1 table is at the top of the offsets") { $0.set(40, 8, UInt64.max & ~0xfff) },
  BrokenImage("L1 table is the refcount table") { $0.set(40, 8, UInt64($0.refcountTable)) },
  BrokenImage("refcount table is not aligned") { $0.change(48) { $0 + 512 } },
  BrokenImage("refcount table is at 0") { $0.set(48, 8, 0) },
  BrokenImage("refcount table is beyond the end") { $0.set(48, 8, 1 << 40) },
  BrokenImage("refcount table is the L1 table") { $0.set(48, 8, UInt64($0.l1)) },
  BrokenImage("refcount_table_clusters is zero") { $0.set(56, 4, 0) },
  BrokenImage("refcount_table_clusters is two") { $0.set(56, 4, 2) },
  BrokenImage("refcount_table_clusters is 2^32 - 1") { $0.set(56, 4, UInt64(UInt32.max)) },
  BrokenImage("unknown incompatible feature") { $0.bytes[72] = 0x80 },
  BrokenImage("unknown compatible and autoclear features") {
    $0.bytes[80] = 0x80
    $0.bytes[88] = 0x80
  },
  BrokenImage("dirty bit") { $0.set(72, 8, 1) },
  BrokenImage("corrupt bit") { $0.set(72, 8, 2) },
  BrokenImage("compression type bit without a type") { $0.set(72, 8, 8) },
  BrokenImage("compression type without its bit") { $0.bytes[104] = 1 },
  BrokenImage("extended L2 entries with clusters of 4 KiB") { $0.set(72, 8, 16) },
  BrokenImage(
    "bitmaps bit without bitmaps", .plain, .ours(2, theirs: 0, "an error by the specification")
  ) { $0.set(88, 8, 1) },
  BrokenImage("header extension is too long") { $0.set(116, 4, 8000) },
  BrokenImage("header extension of 2^32 - 1 bytes") { $0.set(116, 4, UInt64(UInt32.max)) },
  BrokenImage("the file ends in the header") { $0.bytes.removeLast($0.bytes.count - 60) },
  BrokenImage("the file ends after the header") { $0.bytes.removeLast($0.bytes.count - 4096) },
  BrokenImage("the file ends in the middle") { $0.bytes.removeLast($0.bytes.count / 2 + 100) },
  BrokenImage("the file lacks its last cluster") { $0.bytes.removeLast(4096) },
  BrokenImage("the file lacks part of its last cluster") { $0.bytes.removeLast(100) },
  BrokenImage("the file is empty") { $0.bytes = [] },
]

private let snapshotDamage: [BrokenImage] = [
  BrokenImage("snapshots are forgotten") { $0.set(60, 4, 0) },
  BrokenImage("nb_snapshots is one less") { $0.set(60, 4, 1) },
  BrokenImage("nb_snapshots is one more") { $0.set(60, 4, 3) },
  BrokenImage("nb_snapshots is 65537") { $0.set(60, 4, 65537) },
  BrokenImage("nb_snapshots is 65536") { $0.set(60, 4, 65536) },
  BrokenImage("snapshot table is not aligned") { $0.set(64, 8, UInt64($0.snapshots + 8)) },
  BrokenImage("snapshot table is beyond the end") { $0.set(64, 8, 1 << 40) },
  BrokenImage("snapshot table is at 0") { $0.set(64, 8, 0) },
  BrokenImage("snapshot's L1 table is not aligned") { $0.change($0.snapshots) { $0 + 512 } },
  BrokenImage("snapshot's L1 table is beyond the end") { $0.set($0.snapshots, 8, 1 << 40) },
  BrokenImage("snapshot's L1 table is the active one") { $0.set($0.snapshots, 8, UInt64($0.l1)) },
  BrokenImage("snapshot's L1 table is the header") { $0.set($0.snapshots, 8, 0) },
  BrokenImage("snapshot's l1_size is 2^32 - 1") {
    $0.set($0.snapshots + 8, 4, UInt64(UInt32.max))
  },
  BrokenImage("snapshot's l1_size is the most that is allowed") {
    $0.set($0.snapshots + 8, 4, 1 << 22)
  },
  BrokenImage("snapshot's l1_size is zero") { $0.set($0.snapshots + 8, 4, 0) },
  BrokenImage("snapshot has too little extra data") { $0.set($0.snapshots + 36, 4, 8) },
  BrokenImage("snapshot has too much extra data") { $0.set($0.snapshots + 36, 4, 1025) },
  BrokenImage("snapshot has 2^32 - 1 bytes of extra data") {
    $0.set($0.snapshots + 36, 4, UInt64(UInt32.max))
  },
  BrokenImage("snapshot's name is long") { $0.set($0.snapshots + 14, 2, 0xffff) },
  BrokenImage("snapshots with a data file", .data) {
    let end = ($0.bytes.count + 4095) / 4096 * 4096
    $0.bytes += [UInt8](repeating: 0, count: end + 4096 - $0.bytes.count)
    $0.setRefcount(end, 1)
    $0.set(end + 36, 4, 16)
    $0.set(60, 4, 1)
    $0.set(64, 8, UInt64(end))
  },
]

private let otherDamage: [BrokenImage] = [
  BrokenImage("compressed: nothing is broken", .compressed) { _ in },
  BrokenImage("compressed cluster is COPIED", .compressed) {
    $0.change($0.l2Entry($0.l2(0)) { $0 >> 62 == 1 }) { $0 | 1 << 63 }
  },
  BrokenImage("compressed cluster is beyond the end", .compressed) {
    $0.change($0.l2Entry($0.l2(0)) { $0 >> 62 == 1 }) { $0 | 1 << 40 }
  },
  BrokenImage("compressed cluster is at the top of the offsets", .compressed) {
    $0.change($0.l2Entry($0.l2(0)) { $0 >> 62 == 1 }) { $0 | 0x03ff_ffff_ffff_ffff }
  },
  BrokenImage("compressed cluster has all sectors", .compressed) {
    $0.change($0.l2Entry($0.l2(0)) { $0 >> 62 == 1 }) { $0 | 0xf << 58 }
  },
  BrokenImage("compressed cluster's refcount is one less", .compressed) {
    let entry = $0.get($0.l2Entry($0.l2(0)) { $0 >> 62 == 1 }, 8)
    let host = Int(entry & ((1 << 58) - 1))
    $0.setRefcount(host, $0.refcount(host) - 1)
  },
  BrokenImage("compressed cluster's refcount is one more", .compressed) {
    let entry = $0.get($0.l2Entry($0.l2(0)) { $0 >> 62 == 1 }, 8)
    let host = Int(entry & ((1 << 58) - 1))
    $0.setRefcount(host, $0.refcount(host) + 1)
  },
  BrokenImage("bitmaps: nothing is broken", .bitmaps) { _ in },
  BrokenImage("bitmaps: the autoclear bit is clear", .bitmaps) { $0.set(88, 8, 0) },
  BrokenImage("bitmaps: refcount of the directory is zero", .bitmaps) {
    $0.setRefcount($0.bitmapDirectory, 0)
  },
  BrokenImage("bitmaps: refcount of a table is two", .bitmaps) {
    $0.setRefcount($0.bitmapTable, 2)
  },
  BrokenImage("bitmaps: refcount of data is zero", .bitmaps) {
    $0.setRefcount($0.host($0.bitmapTable), 0)
  },
  BrokenImage("bitmaps: data is the L1 table", .bitmaps) {
    $0.set($0.bitmapTable, 8, UInt64($0.l1))
  },
  BrokenImage("bitmaps: data is beyond the end", .bitmaps) { $0.set($0.bitmapTable, 8, 1 << 40) },
  BrokenImage(
    "bitmaps: table entry has reserved bits", .bitmaps, .ours(2, theirs: 1, opensNothing)
  ) { $0.change($0.bitmapTable) { $0 | 2 } },
  BrokenImage("bitmaps: data is not aligned", .bitmaps, .ours(2, theirs: 1, opensNothing)) {
    $0.set($0.bitmapTable, 8, 0x1200)
  },
  BrokenImage("bitmaps: table is not aligned", .bitmaps, .ours(2, theirs: 1, opensNothing)) {
    $0.change($0.bitmapDirectory) { $0 + 512 }
  },
  BrokenImage("bitmaps: nb_bitmaps is zero", .bitmaps, .ours(2, theirs: 1, opensNothing)) {
    $0.set($0.bitmaps, 4, 0)
  },
  BrokenImage("bitmaps: nb_bitmaps is one more", .bitmaps, .ours(2, theirs: 1, opensNothing)) {
    $0.set($0.bitmaps, 4, 3)
  },
  BrokenImage("bitmaps: directory is not aligned", .bitmaps, .ours(2, theirs: 1, opensNothing)) {
    $0.change($0.bitmaps + 16) { $0 + 8 }
  },
  BrokenImage("bitmaps: directory is beyond the end", .bitmaps, .ours(2, theirs: 1, opensNothing)) {
    $0.set($0.bitmaps + 16, 8, 1 << 40)
  },
  BrokenImage("bitmaps: directory is one byte longer", .bitmaps, .ours(2, theirs: 1, opensNothing))
  {
    $0.change($0.bitmaps + 8) { $0 + 1 }
  },
  BrokenImage("bitmaps: type is 2", .bitmaps, .ours(2, theirs: 1, opensNothing)) {
    $0.bytes[$0.bitmapDirectory + 16] = 2
  },
  BrokenImage("bitmaps: granularity_bits is 8", .bitmaps, .ours(2, theirs: 1, opensNothing)) {
    $0.bytes[$0.bitmapDirectory + 17] = 8
  },
  BrokenImage("extended: nothing is broken", .extended) { _ in },
  BrokenImage("extended: a subcluster is both allocated and zero", .extended) {
    $0.change($0.l2(0) + 8) { $0 | 4 << 32 | 4 }
  },
  BrokenImage("extended: subclusters without a cluster", .extended) {
    $0.set($0.l2(0) + 1000 * 16 + 8, 8, 1)
  },
  BrokenImage("extended: zero subclusters without a cluster", .extended) {
    $0.set($0.l2(0) + 1000 * 16 + 8, 8, 1 << 40)
  },
  BrokenImage("extended: bit 0 of an entry", .extended, .ours(2, theirs: 0, "it is reserved")) {
    $0.change($0.l2(0)) { $0 | 1 }
  },
  BrokenImage("extended: compressed with a bitmap", .extended) {
    $0.set($0.l2(0), 8, 1 << 62 | 0x10000)
  },
  BrokenImage("data file: nothing is broken", .data) { _ in },
  BrokenImage("data file: COPIED is clear", .data) { $0.change($0.l2(0) + 8) { $0 ^ 1 << 63 } },
  BrokenImage("data file: a compressed cluster", .data) {
    $0.set($0.l2(0) + 8, 8, 1 << 62 | 0x1000)
  },
  BrokenImage(
    "data file: data is elsewhere", .data,
    .ours(2, theirs: 0, "QEMU finds it when it reads")
  ) { $0.change($0.l2(0) + 8) { $0 + 4096 } },
]
