import BlockCore
import Testing

@testable import QCOW2Format

/// A header in which no two fields have the same value.
private func header(version: UInt32) -> Header {
  var header = Header(version: version, clusterBits: 16, size: 0x0102_0304_0506_0708)
  header.backingFileOffset = 0x1112_1314_1516_1718
  header.backingFileSize = 0x2122_2324
  header.cryptMethod = 0x3132_3334
  header.l1Size = 0x4142_4344
  header.l1TableOffset = 0x5152_5354_5556_5758
  header.refcountTableOffset = 0x6162_6364_6566_6768
  header.refcountTableClusters = 0x7172_7374
  header.snapshotCount = 0x8182_8384
  header.snapshotsOffset = 0x9192_9394_9596_9798
  guard version == 3 else { return header }
  header.incompatible = IncompatibleFeatures(rawValue: 0xa1a2_a3a4_a5a6_a7a8)
  header.compatible = CompatibleFeatures(rawValue: 0xb1b2_b3b4_b5b6_b7b8)
  header.autoclear = AutoclearFeatures(rawValue: 0xc1c2_c3c4_c5c6_c7c8)
  header.refcountOrder = 0xd1d2_d3d4
  header.compressionType = 0xe1
  return header
}

@Suite struct HeaderTests {
  @Test(arguments: [UInt32(2), 3]) func everyFieldSurvivesARoundTrip(version: UInt32) throws {
    let header = header(version: version)
    let bytes = header.encoded
    #expect(bytes.count == (version == 2 ? 72 : 112))
    #expect(try Header(parsing: bytes.span) == header)
  }

  /// The positions as the specification has them, with every byte in its place.
  @Test func fieldsStandWhereTheSpecificationSays() {
    let v2: [UInt8] =
      [0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 3] + Array(0x11...0x18) + Array(0x21...0x24)
      + [0, 0, 0, 16] + Array(1...8) + Array(0x31...0x34) + Array(0x41...0x44)
      + Array(0x51...0x58) + Array(0x61...0x68) + Array(0x71...0x74) + Array(0x81...0x84)
      + Array(0x91...0x98)
    let v3: [UInt8] =
      Array(0xa1...0xa8) + Array(0xb1...0xb8) + Array(0xc1...0xc8) + Array(0xd1...0xd4)
      + [0, 0, 0, 112, 0xe1, 0, 0, 0, 0, 0, 0, 0]
    #expect(header(version: 3).encoded == v2 + v3)
  }

  @Test func aShorterHeaderIsRefused() throws {
    for (version, least) in [(UInt32(2), 72), (3, 104)] {
      let bytes = header(version: version).encoded
      for count in 0..<least {
        #expect(throws: FormatError.self) { try Header(parsing: bytes.span.extracting(0..<count)) }
      }
      #expect(try Header(parsing: bytes.span.extracting(0..<least)).version == version)
    }
  }

  @Test func magicAndVersionAreChecked() {
    var bytes = header(version: 3).encoded
    bytes[7] = 4
    #expect(throws: FormatError.unsupportedVersion(4)) { try Header(parsing: bytes.span) }
    bytes[0] = 0
    #expect(throws: FormatError.notQCOW2(magic: 0x46_49fb)) { try Header(parsing: bytes.span) }
  }

  /// The compression type counts only if the header is long enough to have it.
  @Test func aShortVersion3HeaderHasNoCompressionType() throws {
    var short = header(version: 3)
    short.headerLength = 104
    let bytes = short.encoded + [7, 7, 7, 7, 7, 7, 7, 7]
    #expect(bytes.count == 112)
    #expect(try Header(parsing: bytes.span).compressionType == 0)
  }
}

@Suite struct HeaderPatchTests {
  static let patches: [(HeaderPatch, Set<Int>)] = [
    (.size(0x0a0a_0a0a_0a0a_0a0a), Set(24..<32)),
    (.l1Table(HostOffset(0x0a0a_0a0a_0a0a_0a0a), entries: 0x0a0a_0a0a), Set(36..<48)),
    (.refcountTable(HostOffset(0x0a0a_0a0a_0a0a_0a0a), clusters: 0x0a0a_0a0a), Set(48..<60)),
    (.snapshotTable(HostOffset(0x0a0a_0a0a_0a0a_0a0a)), Set(64..<72)),
    (.incompatible(IncompatibleFeatures(rawValue: 0x0a0a_0a0a_0a0a_0a0a)), Set(72..<80)),
    (.autoclear(AutoclearFeatures(rawValue: 0x0a0a_0a0a_0a0a_0a0a)), Set(88..<96)),
  ]

  /// The bytes that change are those of the fields, and the fields say what the bytes say.
  @Test(arguments: [UInt32(2), 3], patches)
  func aPatchChangesItsFieldsAndNothingElse(
    version: UInt32, patch: (change: HeaderPatch, bytes: Set<Int>)
  ) throws {
    var edited = header(version: version)
    let before = edited.encoded + [UInt8](repeating: 0xee, count: 512 - edited.encoded.count)
    var after = before
    var span = after.mutableSpan
    patch.change.write(into: &span, version: version)
    let changed = Set(before.indices.filter { before[$0] != after[$0] })
    let isKept = version == 2 && patch.bytes.contains { $0 >= 72 }
    #expect(changed == (isKept ? [] : patch.bytes))
    #expect(edited.isChanged(by: patch.change) == !isKept)
    edited.apply(patch.change)
    #expect(try Header(parsing: after.span) == edited)
    #expect(!edited.isChanged(by: patch.change))
  }

  @Test func bitsAreAddedAndRemoved() {
    var header = Header(version: 3, clusterBits: 16, size: 0)
    header.incompatible = [.dirty, .extendedL2]
    header.autoclear = [.bitmaps, AutoclearFeatures(rawValue: 1 << 40)]
    #expect(header.adding(.corrupt) == .incompatible([.dirty, .corrupt, .extendedL2]))
    #expect(header.adding(.dirty) == .incompatible([.dirty, .extendedL2]))
    #expect(header.removing([.dirty, .corrupt]) == .incompatible(.extendedL2))
    #expect(header.keeping([.bitmaps, .rawExternalData]) == .autoclear(.bitmaps))
    #expect(!header.isChanged(by: header.adding(.dirty)))
    #expect(!header.isChanged(by: header.removing(.corrupt)))
    #expect(header.isChanged(by: header.removing(.dirty)))
  }

  @Test func aPlanMakesItsTableTheOneInForce() throws {
    let geometry = ClusterGeometry(clusterBits: 16, refcountOrder: 4)
    let plan = try RefcountPlan(growing: 8192, toCover: 8192, geometry)
    let offset = HostOffset(plan.table.lowerBound.number << 16)
    #expect(plan.headerPatch == .refcountTable(offset, clusters: 2))
  }
}

@Suite struct HeaderClusterTests {
  private func sound(_ version: UInt32) -> Header {
    var header = Header(version: version, clusterBits: 12, size: 1 << 20)
    header.l1Size = 1
    header.l1TableOffset = 3 << 12
    header.refcountTableOffset = 1 << 12
    header.refcountTableClusters = 1
    return header
  }

  private func parse(_ bytes: [UInt8]) throws -> HeaderCluster {
    let cluster = bytes + [UInt8](repeating: 0, count: 4096 - bytes.count)
    return try HeaderCluster(parsing: cluster.span, fileLength: 1 << 20)
  }

  @Test(arguments: [UInt32(2), 3]) func aNewClusterSurvivesARoundTrip(version: UInt32) throws {
    let pointer = EncryptionHeaderPointer(offset: HostOffset(4 << 12), length: 5000)
    let bytes = HeaderCluster.encode(
      sound(version),
      extensions: [
        (.backingFormat, Array("qcow2".utf8)), (.dataFileName, Array("d.raw".utf8)),
        (.encryptionHeader, pointer.encoded), (.featureNames, FeatureNames.standard.encoded),
      ], backingFile: "base é.qcow2")
    let found = try parse(bytes)
    #expect(
      found.extensions.map(\.kind)
        == [.backingFormat, .dataFileName, .encryptionHeader, .featureNames])
    #expect(found.backingFormat == "qcow2")
    #expect(found.dataFile == "d.raw")
    #expect(found.encryptionHeader == pointer)
    #expect(found.backingFile == "base é.qcow2")
    #expect(Int(found.header.backingFileOffset) == bytes.count - "base é.qcow2".utf8.count)
    #expect(bytes.suffix(13) == Array("base é.qcow2".utf8)[...])
  }

  @Test func withoutNamesThereIsOnlyTheEndMarker() throws {
    let bytes = HeaderCluster.encode(sound(3), extensions: [], backingFile: nil)
    #expect(bytes == sound(3).encoded + [UInt8](repeating: 0, count: 8))
    let found = try parse(bytes)
    #expect(found.header == sound(3))
    #expect(found.extensions.isEmpty && found.backingFile == nil && found.dataFile == nil)
  }

  @Test func paddingDoesNotCount() throws {
    for length in 0...9 {
      let name = String(repeating: "x", count: length)
      let bytes = HeaderCluster.encode(
        sound(3), extensions: [(.dataFileName, Array(name.utf8)), (.init(rawValue: 77), [1])],
        backingFile: nil)
      #expect(bytes.count % 8 == 0)
      let found = try parse(bytes)
      #expect(found.dataFile == name)
      #expect(found.last(.init(rawValue: 77))?.length == 1)
    }
  }

  @Test func aReaderWantsTheStartAndThenTheCluster() throws {
    let bytes = HeaderCluster.encode(sound(3), extensions: [], backingFile: "base")
    let cluster = bytes + [UInt8](repeating: 0, count: 4096 - bytes.count)
    var reader = HeaderClusterReader(fileLength: 1 << 20)
    #expect(reader.wanted == 512)
    #expect(try reader.take(cluster.span.extracting(0..<512)) == nil)
    #expect(reader.wanted == 4096)
    let found = try reader.take(cluster.span)
    #expect(found?.backingFile == "base" && found?.fileLength == 1 << 20)

    var cut = HeaderClusterReader(fileLength: 71)
    #expect(throws: FormatError.truncated(structure: "header", needed: 72, available: 71)) {
      try cut.take(cluster.span.extracting(0..<512))
    }
  }

  /// A buffer shorter than the cluster is refused, not read past.
  @Test func aNameBeyondTheBytesIsRefused() throws {
    let bytes = HeaderCluster.encode(sound(3), extensions: [], backingFile: "base")
    #expect(try HeaderCluster(parsing: bytes.span, fileLength: 1 << 20).backingFile == "base")
    for count in 104..<bytes.count {
      #expect(throws: FormatError.self) {
        try HeaderCluster(parsing: bytes.span.extracting(0..<count), fileLength: 1 << 20)
      }
    }
  }
}
