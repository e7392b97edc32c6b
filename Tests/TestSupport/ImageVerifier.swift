import QCOW2Codec
import QCOW2Format

/// What a check of an image found.
package struct ImageReport: Sendable {
  package var errors: [String] = []
  /// Clusters with a higher refcount than references.
  package var leaks = 0
}

/// An independent checker: walks the bytes of an image by the specification's words alone.
///
/// Errors: a cluster with two owners, a refcount below the number of references, wrong COPIED
/// flags, pointers that are unaligned or a cluster or more beyond the end of the file, reserved
/// bits.
package final class ImageVerifier {
  let bytes: ImageBytes
  private let clusterBits: Int
  let clusterSize: Int
  private let version: Int
  private let refcountOrder: Int
  private let l1Size: Int
  private let l1Offset: Int
  /// References per host cluster, by anyone.
  private var references: [UInt32] = []
  /// Clusters owned exclusively: metadata, and what the active tables point at.
  private var isExclusive: [Bool] = []
  /// Clusters that hold compressed ones.
  private var isShared: [Bool] = []
  private var report = ImageReport()
  private let isExtended: Bool
  private let hasDataFile: Bool
  /// The file that data clusters lie in.
  private let data: ImageBytes
  private let cipher: ToyCipher?
  /// Fills 512 bytes with a sector of the backing file; nil without one.
  private let backing: ((Int, UnsafeMutableRawPointer) -> Void)?
  /// A power cut may leave the old bitmap beside a new compressed descriptor: no reader looks at
  /// it.
  package var allowsStaleBitmaps = false
  private let scratch = UnsafeMutableRawPointer.allocate(byteCount: 512, alignment: 16)
  private var inflated: [UInt64: [UInt8]] = [:]
  private lazy var codec = ClusterCodec(
    version >= 3 && bytes.be64(72) & 8 != 0 ? .zstd : .zlib, clusterSize: clusterSize)
  private static let offsetMask: UInt64 = 0x00ff_ffff_ffff_fe00

  package init(
    _ bytes: ImageBytes, data: ImageBytes? = nil, cipher: ToyCipher? = nil,
    backing: ((Int, UnsafeMutableRawPointer) -> Void)? = nil
  ) {
    self.bytes = bytes
    version = Int(bytes.be32(4))
    clusterBits = Int(bytes.be32(20))
    clusterSize = 1 << clusterBits
    refcountOrder = version >= 3 ? Int(bytes.be32(96)) : 4
    l1Size = Int(bytes.be32(36))
    l1Offset = Int(bytes.be64(40))
    isExtended = version >= 3 && bytes.be64(72) & 16 != 0
    hasDataFile = version >= 3 && bytes.be64(72) & 4 != 0
    self.data = data ?? bytes
    self.cipher = cipher
    self.backing = backing
  }

  deinit { scratch.deallocate() }

  private var entrySize: Int { isExtended ? 16 : 8 }

  // MARK: Guest contents

  /// The bytes of a guest sector through the active tables; nil if it reads as zeros.
  ///
  /// Good until the next call, and while the verifier lives.
  package func sector(_ number: Int) -> UnsafeRawPointer? { sector(number, l1: l1Offset) }

  /// The same through the tables of the first snapshot.
  package func snapshotSector(_ number: Int) -> UnsafeRawPointer? {
    sector(number, l1: Int(bytes.be64(Int(bytes.be64(64)))))
  }

  private func sector(_ number: Int, l1: Int) -> UnsafeRawPointer? {
    let offset = number * 512
    let l2Bits = clusterBits - (isExtended ? 4 : 3)
    let table = Int(bytes.be64(l1 + offset >> (clusterBits + l2Bits) * 8) & Self.offsetMask)
    if table == 0 || table >= bytes.length { return unallocated(number) }
    let at = table + (offset >> clusterBits & (1 << l2Bits - 1)) * entrySize
    let entry = bytes.be64(at)
    if entry & 1 << 62 != 0 { return compressed(entry, offset & (clusterSize - 1)) }
    let host = Int(entry & Self.offsetMask)
    if isExtended {
      let bit = UInt64(offset & (clusterSize - 1)) >> UInt64(clusterBits - 5)
      let bitmap = bytes.be64(at + 8)
      if bitmap >> (bit + 32) & 1 != 0 { return nil }
      if bitmap >> bit & 1 == 0 { return unallocated(number) }
    } else {
      if version >= 3 && entry & 1 != 0 { return nil }
      if host == 0 && !(hasDataFile && entry & 1 << 63 != 0) { return unallocated(number) }
    }
    return plain(number, host + offset & (clusterSize - 1))
  }

  private func unallocated(_ number: Int) -> UnsafeRawPointer? {
    guard let backing else { return nil }
    backing(number, scratch)
    return UnsafeRawPointer(scratch)
  }

  private func plain(_ number: Int, _ host: Int) -> UnsafeRawPointer {
    data.read(into: scratch, count: 512, at: host)
    if let cipher {
      let sector = cipher.ivBasis == .guest ? number : host / 512
      cipher.decrypt(scratch, count: 512, firstSector: UInt64(sector))
    }
    return UnsafeRawPointer(scratch)
  }

  /// The place and length in bytes, in whole sectors, of a compressed cluster.
  private func compressedRange(_ entry: UInt64) -> (offset: Int, length: Int) {
    let shift = UInt64(62 - (clusterBits - 8))
    let offset = Int(entry & (1 << shift - 1))
    let sectors = Int(entry >> shift & (1 << UInt64(clusterBits - 8) - 1)) + 1
    return (offset, sectors * 512 - offset % 512)
  }

  /// Part of a compressed cluster; 0xbb if it does not inflate.
  private func compressed(_ entry: UInt64, _ start: Int) -> UnsafeRawPointer {
    let cluster = inflated[entry] ?? inflate(entry)
    inflated[entry] = cluster
    cluster.withUnsafeBytes { source in
      if let base = source.baseAddress { scratch.copyMemory(from: base + start, byteCount: 512) }
    }
    return UnsafeRawPointer(scratch)
  }

  private func inflate(_ entry: UInt64) -> [UInt8] {
    let (offset, length) = compressedRange(entry)
    var stream = [UInt8](repeating: 0, count: length)
    stream.withUnsafeMutableBytes { target in
      if let base = target.baseAddress { bytes.read(into: base, count: length, at: offset) }
    }
    var cluster = [UInt8](repeating: 0xbb, count: clusterSize)
    stream.withUnsafeBytes { source in
      cluster.withUnsafeMutableBytes { target in
        if StoredDeflate.unwrap(source, into: target) { return }
        do { try codec.decompress(source, into: target) } catch {
          target.initializeMemory(as: UInt8.self, repeating: 0xbb)
        }
      }
    }
    return cluster
  }

  // MARK: Check

  package func check() -> ImageReport {
    references = Array(repeating: 0, count: bytes.length / clusterSize + 1)
    isExclusive = Array(repeating: false, count: references.count)
    isShared = isExclusive
    own("header", 0, clusterSize)
    own("L1 table", l1Offset, l1Size * 8)
    own("refcount table", Int(bytes.be64(48)), Int(bytes.be32(56)) * clusterSize)
    ownRefcountBlocks()
    walk(l1: l1Offset, entries: l1Size, isActive: true)
    walkSnapshots()
    ownBitmaps()
    compareRefcounts()
    return report
  }

  func fail(_ text: String) { report.errors.append(text) }

  private func number(_ value: Int) -> String { "0x" + String(value, radix: 16) }

  /// Counts a reference to each cluster of a range that nobody else may refer to.
  func own(_ what: String, _ offset: Int, _ length: Int) {
    guard length > 0, refer(what, offset, length) else { return }
    for cluster in (offset >> clusterBits)...((offset + length - 1) >> clusterBits) {
      if isExclusive[cluster] || isShared[cluster] {
        fail("\(what): cluster \(number(cluster)) has two owners")
      }
      isExclusive[cluster] = true
    }
  }

  private func refer(_ what: String, _ offset: Int, _ length: Int) -> Bool {
    if offset & (clusterSize - 1) != 0 {
      fail("\(what) at \(number(offset)) is not aligned")
      return false
    }
    // As QEMU: the last cluster may be cut short by the end of the file, but must begin before it.
    if offset < 0 || offset >= bytes.length || offset + length >= bytes.length + clusterSize {
      fail("\(what) at \(number(offset)) is beyond the end of the file")
      return false
    }
    for cluster in (offset >> clusterBits)...((offset + length - 1) >> clusterBits) {
      references[cluster] += 1
    }
    return true
  }

  private func ownRefcountBlocks() {
    let table = Int(bytes.be64(48))
    for index in 0..<(Int(bytes.be32(56)) * clusterSize / 8) {
      let entry = bytes.be64(table + index * 8)
      if entry == 0 { continue }
      if entry & 0x1ff != 0 { fail("refcount table entry \(index) has reserved bits") }
      own("refcount block \(index)", Int(truncatingIfNeeded: entry & ~0x1ff), clusterSize)
    }
  }

  private func walk(l1: Int, entries: Int, isActive: Bool) {
    for index in 0..<entries {
      let entry = bytes.be64(l1 + index * 8)
      if entry == 0 { continue }
      let table = Int(entry & Self.offsetMask)
      if entry & ~(Self.offsetMask | 1 << 63) != 0 || table == 0 {
        fail("L1 entry \(index) is \(String(entry, radix: 16))")
        continue
      }
      guard point("L2 table \(index)", entry, table, isActive) else { continue }
      walk(table: table, number: index, isActive: isActive)
    }
  }

  private func walk(table: Int, number index: Int, isActive: Bool) {
    let entrySize = entrySize
    var position = 0
    while position < clusterSize {
      let entry = bytes.be64(table + position)
      let bitmap = isExtended ? bytes.be64(table + position + 8) : 0
      if entry | bitmap != 0 { walk(entry, bitmap, index, position / entrySize, isActive) }
      position += entrySize
    }
  }

  private func walk(
    _ entry: UInt64, _ bitmap: UInt64, _ table: Int, _ position: Int, _ isActive: Bool
  ) {
    let name = "\(table)/\(position)"
    if entry & 1 << 62 != 0 { return walkCompressed(entry, bitmap, name) }
    let host = Int(entry & Self.offsetMask)
    let known = Self.offsetMask | 1 << 63 | (version >= 3 && !isExtended ? 1 : 0)
    let isInFile = host != 0 || hasDataFile && entry & 1 << 63 != 0
    if entry & ~known != 0 { fail("L2 entry \(name) is \(String(entry, radix: 16))") }
    if bitmap >> 32 & bitmap != 0 {
      fail("L2 entry \(name) has the bitmap \(String(bitmap, radix: 16))")
    }
    if !isInFile {
      if entry & 1 << 63 != 0 { fail("L2 entry \(name) is COPIED without a cluster") }
      if bitmap & 0xffff_ffff != 0 { fail("L2 entry \(name) has data without a cluster") }
    } else if hasDataFile {
      let guest = table * (clusterSize / entrySize) + position
      if host != guest * clusterSize || entry & 1 << 63 == 0 {
        fail("L2 entry \(name) is \(String(entry, radix: 16)) with a data file")
      }
    } else {
      _ = point("data cluster \(name)", entry, host, isActive)
    }
  }

  /// A compressed cluster refers to each host cluster that its sectors touch.
  private func walkCompressed(_ entry: UInt64, _ bitmap: UInt64, _ name: String) {
    let (offset, length) = compressedRange(entry)
    if entry & 1 << 63 != 0 { fail("compressed entry \(name) is COPIED") }
    if bitmap != 0 && !allowsStaleBitmaps {
      fail("compressed entry \(name) has the bitmap \(String(bitmap, radix: 16))")
    }
    for cluster in (offset >> clusterBits)...((offset + length - 1) >> clusterBits) {
      let what = "compressed cluster \(name)"
      guard refer(what, cluster << clusterBits, clusterSize) else { return }
      if isExclusive[cluster] { fail("\(what): cluster \(number(cluster)) has an owner") }
      isShared[cluster] = true
    }
  }

  /// Counts what an L1 or L2 entry points at, and checks the COPIED flag of active ones.
  private func point(_ what: String, _ entry: UInt64, _ host: Int, _ isActive: Bool) -> Bool {
    guard isActive else { return refer("snapshot's " + what, host, clusterSize) }
    let before = report.errors.count
    own(what, host, clusterSize)
    if report.errors.count > before { return false }
    let count = refcount(host >> clusterBits)
    if (entry & 1 << 63 != 0) != (count == 1) {
      fail("\(what) at \(number(host)): entry \(String(entry, radix: 16)), refcount \(count)")
    }
    return true
  }

  private func walkSnapshots() {
    var at = Int(bytes.be64(64))
    let start = at
    for _ in 0..<bytes.be32(60) {
      let l1 = Int(bytes.be64(at))
      let entries = Int(bytes.be32(at + 8))
      own("snapshot's L1 table", l1, entries * 8)
      walk(l1: l1, entries: entries, isActive: false)
      at += 40 + Int(bytes.be32(at + 36)) + Int(bytes.be16(at + 12)) + Int(bytes.be16(at + 14))
      at = (at + 7) & ~7
    }
    if at > start { own("snapshot table", start, at - start) }
  }

  // MARK: Refcounts

  private var perBlock: Int { (clusterSize * 8) >> refcountOrder }

  private func refcount(_ cluster: Int) -> UInt64 {
    let index = cluster / perBlock
    guard index < Int(bytes.be32(56)) * clusterSize / 8 else { return 0 }
    let block = Int(truncatingIfNeeded: bytes.be64(Int(bytes.be64(48)) + index * 8))
    if block <= 0 || block >= bytes.length { return 0 }
    return refcount(block: block, cluster % perBlock)
  }

  private func refcount(block: Int, _ index: Int) -> UInt64 {
    let bits = 1 << refcountOrder
    if bits < 8 {
      let byte = bytes.base.load(fromByteOffset: block + index * bits / 8, as: UInt8.self)
      return UInt64(byte >> UInt8(index * bits % 8)) & (1 << UInt64(bits) - 1)
    }
    var value: UInt64 = 0
    for byte in 0..<(bits / 8) {
      value =
        value << 8
        | UInt64(bytes.base.load(fromByteOffset: block + index * bits / 8 + byte, as: UInt8.self))
    }
    return value
  }

  private func compareRefcounts() {
    for cluster in references.indices {
      let found = refcount(cluster)
      let needed = UInt64(references[cluster])
      if found < needed {
        fail("cluster \(number(cluster)): refcount \(found), \(needed) references")
      } else if found > needed {
        report.leaks += 1
      }
    }
    countLeaksBeyondTheEnd()
  }

  private func countLeaksBeyondTheEnd() {
    let table = Int(bytes.be64(48))
    for index in 0..<(Int(bytes.be32(56)) * clusterSize / 8) {
      let block = Int(truncatingIfNeeded: bytes.be64(table + index * 8))
      if block <= 0 || block >= bytes.length || (index + 1) * perBlock <= references.count {
        continue
      }
      for entry in max(0, references.count - index * perBlock)..<perBlock
      where refcount(block: block, entry) != 0 {
        report.leaks += 1
      }
    }
  }
}
