import BlockCore
import QCOW2Codec
import QCOW2Format

/// The header of an image as far as it can be used; for what cannot, what the user says or what the file
/// looks like.
struct SalvageHeader {
  /// No disk is larger.
  static let mostBytes = UInt64(Int64.max) & ~511

  private(set) var header: Header
  private(set) var extensions: [HeaderExtension] = []
  /// The first cluster.
  private let start: IOBuffer
  /// What could not be used, and what stands in for it.
  private(set) var notes: [String] = []
  private let file: any ImageBytes
  private let options: SalvageOptions
  /// The L1 table was found in the file, whatever the header says.
  private var isFound = false

  /// - Throws: ``ToolError/salvage(_:)`` if nothing says where the tables are; with `needsL1` false the
  ///   L1 table need not be found, as a snapshot says where its own is.
  init(
    _ file: any ImageBytes, _ options: SalvageOptions, needsL1: Bool
  ) throws(ToolError) {
    self.file = file
    self.options = options
    start = IOBuffer(count: 2 << 20)
    // What cannot be read is zeros, and judged as such.
    file.readSectors(into: start, at: HostOffset(0))
    header = start.withBytes { Header(unjudged: $0.extracting(0..<Header.newV3Length)) }
    judgeMagic()
    try findTables(needsL1)
    judgeSize()
    judgeFeatures()
    readExtensions()
  }

  private mutating func note(_ text: String) { notes.append(text) }

  private mutating func judgeMagic() {
    let magic = start.be64(0) >> 32
    if magic != UInt64(Header.magic) {
      note(
        "the magic is \(hex(magic)), expected 0x514649fb: the rest of the header is used all the same"
      )
    }
    if header.version != 2 && header.version != 3 {
      note("the version is \(header.version), expected 2 or 3: taken for 3")
      header.version = 3
    }
  }

  /// The header is one, and says that the disk has no bytes, which nobody contradicts.
  private var isOfEmptyDisk: Bool {
    start.be64(0) >> 32 == UInt64(Header.magic) && options.size ?? header.size == 0
      && header.l1Size == 0
  }

  private func isUsableTable(_ offset: UInt64, clusterBits: UInt32) -> Bool {
    offset != 0 && offset & ((1 << UInt64(clusterBits)) - 1) == 0 && offset < file.length
  }

  /// Settles cluster size and L1 table, of which each helps to find the other.
  private mutating func findTables(_ needsL1: Bool) throws(ToolError) {
    if let clusterSize = options.clusterSize {
      header.clusterBits = UInt32(clusterSize.trailingZeroBitCount)
    }
    if let offset = options.l1Offset { header.l1TableOffset = offset }
    let hasSize = (9...21).contains(header.clusterBits)
    if hasSize, options.l1Offset != nil { return }
    if hasSize, isUsableTable(header.l1TableOffset, clusterBits: header.clusterBits) { return }
    if hasSize, !needsL1 || isOfEmptyDisk { return }
    let sizes = hasSize ? [Int(header.clusterBits)] : Array(9...21)
    let found = TableSearch(file).l1Table(sizes)
    if !hasSize {
      guard let found else { throw .salvage(.noClusterSize) }
      note(
        "cluster_bits is \(header.clusterBits), expected 9 to 21: taken for \(found.clusterBits)")
      header.clusterBits = UInt32(found.clusterBits)
      if options.l1Offset != nil { return }
      if isUsableTable(header.l1TableOffset, clusterBits: header.clusterBits) { return }
    }
    guard let found else {
      // The tables that lie around take the places of those that the L1 table would lead to.
      guard options.scans else { throw .salvage(.noL1Table(header.l1TableOffset)) }
      note("there is no L1 table: L2 tables are taken in the order in which they lie in the file")
      header.l1TableOffset = 0
      return
    }
    note(
      "l1_table_offset is \(hex(header.l1TableOffset)), where no table can be: the table at "
        + "\(hex(found.offset.bytes)) is taken")
    header.l1TableOffset = found.offset.bytes
    isFound = true
  }

  private mutating func judgeSize() {
    let perTable = geometry(isExtended: header.incompatible.contains(.extendedL2)).bytesPerL2Table
    let most = UInt32(FormatLimit.l1Bytes / 8)
    if let size = options.size {
      header.size = size
      header.l1Size = max(min(header.l1Size, most), entries(for: size, perTable))
      return
    }
    let isSizeUsable = header.size <= Self.mostBytes && (header.size > 0 || header.l1Size == 0)
    if header.l1Size > most || header.l1Size == 0 && (header.size > 0 || isFound) {
      let needed = isSizeUsable && !isFound ? entries(for: header.size, perTable) : entriesInFile()
      note("l1_size is \(header.l1Size), expected 1 to \(most): taken for \(needed)")
      header.l1Size = needed
    }
    let covered = UInt64(header.l1Size).multipliedReportingOverflow(by: perTable)
    let reach = covered.overflow ? Self.mostBytes : min(covered.partialValue, Self.mostBytes)
    if !isSizeUsable || header.size > reach || header.size == 0 && isFound {
      note("the size of the disk is \(header.size), expected at most \(reach): taken for \(reach)")
      header.size = reach
    }
  }

  private func entries(for size: UInt64, _ perTable: UInt64) -> UInt32 {
    let needed = size / perTable + (size % perTable == 0 ? 0 : 1)
    return UInt32(min(needed, FormatLimit.l1Bytes / 8))
  }

  /// The entries of the L1 table's first cluster up to the last one in use.
  private func entriesInFile() -> UInt32 {
    let buffer = IOBuffer(count: 1 << Int(header.clusterBits))
    try? file.read(into: buffer, count: buffer.count, at: HostOffset(header.l1TableOffset))
    let used = (0..<buffer.count / 8).last { buffer.be64($0 * 8) != 0 }
    return UInt32((used ?? 0) + 1)
  }

  private func geometry(isExtended: Bool) -> ClusterGeometry {
    ClusterGeometry(
      clusterBits: Int(header.clusterBits), refcountOrder: 4,
      extendedL2: isExtended && header.clusterBits >= 14)
  }

  private mutating func judgeFeatures() {
    let unknown = header.incompatible.subtracting(.known)
    if !unknown.isEmpty {
      note("incompatible features \(hex(unknown.rawValue)) are unknown, and ignored")
      header.incompatible.subtract(unknown)
    }
    if header.incompatible.contains(.extendedL2), header.clusterBits < 14 {
      note("the image says that it has extended L2 entries, which its clusters are too small for")
      header.incompatible.remove(.extendedL2)
    }
    if header.cryptMethod > 2 {
      note("crypt_method is \(header.cryptMethod), expected 0, 1 or 2: taken for 0")
      header.cryptMethod = 0
    }
    let kind: UInt8 = header.incompatible.contains(.compressionType) ? 1 : 0
    if header.compressionType != kind {
      note(
        "compression_type is \(header.compressionType), the feature bit says \(kind): both are tried"
      )
    }
    // Nothing of it is used.
    header.refcountOrder = 4
  }

  private mutating func readExtensions() {
    let cluster = 1 << Int(header.clusterBits)
    guard header.headerLength >= 72, Int(header.headerLength) <= cluster else {
      return note("header_length is \(header.headerLength): extensions are not read")
    }
    let name = header.backingFileOffset
    let end = name == 0 || name > UInt64(cluster) ? cluster : Int(name)
    do throws(FormatError) {
      extensions = try start.withBytes { bytes throws(FormatError) in
        try HeaderExtension.list(in: bytes, from: Int(header.headerLength), to: end)
      }
    } catch { note("header extensions are not used: \(error.message)") }
  }

  private func text(_ offset: Int, _ length: Int) -> String? {
    guard offset >= 0, length > 0, offset + length <= start.count else { return nil }
    let text = start.withBytes { $0.text(offset..<offset + length) }
    return text.isEmpty ? nil : text
  }

  private func last(_ kind: HeaderExtension.Kind) -> HeaderExtension? {
    extensions.last { $0.kind == kind }
  }

  /// The name of the backing file; nil if there is none, or it cannot be one.
  var backingFile: String? {
    guard header.backingFileOffset < UInt64(start.count),
      UInt64(header.backingFileSize) <= FormatLimit.backingName
    else { return nil }
    return header.backingFileOffset == 0
      ? nil : text(Int(header.backingFileOffset), Int(header.backingFileSize))
  }

  /// Whether the header speaks of a backing file, whether or not it can be named.
  var hasBackingFile: Bool { header.backingFileOffset != 0 }

  var backingFormat: String? { last(.backingFormat).flatMap { text($0.offset, $0.length) } }

  var dataFile: String? { last(.dataFileName).flatMap { text($0.offset, $0.length) } }

  /// The bytes of the LUKS header; nil if nothing says where it is.
  func encryptionArea() -> IOBuffer? {
    guard let found = last(.encryptionHeader), found.length == EncryptionHeaderPointer.length,
      let pointer = try? start.withBytes({ bytes throws(FormatError) in
        try EncryptionHeaderPointer(parsing: bytes.extracting(found.bytes))
      }), pointer.offset.bytes < FormatLimit.hostOffset
    else { return nil }
    let length = Int(min(pointer.length, UInt64(LUKSPartitionHeader.largestArea)))
    return try? file.block(at: pointer.offset, count: length)
  }

  /// Takes the disk of a snapshot in place of the active one.
  mutating func select(_ entry: SnapshotEntry) {
    header.l1TableOffset = entry.l1Table.bytes
    if entry.l1Size > 0,
      !isUsableTable(header.l1TableOffset, clusterBits: header.clusterBits)
    {
      note(
        "the L1 table of the snapshot is said to lie at \(hex(header.l1TableOffset)), where no table can be"
      )
      header.l1TableOffset = 0
    }
    header.l1Size = UInt32(min(UInt64(entry.l1Size), FormatLimit.l1Bytes / 8))
    if let size = entry.diskSize, size <= Self.mostBytes, options.size == nil { header.size = size }
  }
}
