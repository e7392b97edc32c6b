import QCOW2Format
import Testing

extension BadInputTests {
  /// Every header field at, below and beyond what it may be.
  struct HeaderFieldTests {
    private struct Field {
      let name: String
      let position: Int
      let bytes: Int
      /// With this field wrong, refcounts or mappings mean something else, and no open can tell.
      var changesMeaning = false
    }

    private static let fields = [
      Field(name: "magic", position: 0, bytes: 4), Field(name: "version", position: 4, bytes: 4),
      Field(name: "backing_file_offset", position: 8, bytes: 8),
      Field(name: "backing_file_size", position: 16, bytes: 4),
      Field(name: "cluster_bits", position: 20, bytes: 4, changesMeaning: true),
      Field(name: "size", position: 24, bytes: 8),
      Field(name: "crypt_method", position: 32, bytes: 4),
      Field(name: "l1_size", position: 36, bytes: 4),
      Field(name: "l1_table_offset", position: 40, bytes: 8, changesMeaning: true),
      Field(name: "refcount_table_offset", position: 48, bytes: 8),
      Field(name: "refcount_table_clusters", position: 56, bytes: 4),
      Field(name: "nb_snapshots", position: 60, bytes: 4),
      Field(name: "snapshots_offset", position: 64, bytes: 8),
      Field(name: "incompatible_features", position: 72, bytes: 8),
      Field(name: "compatible_features", position: 80, bytes: 8),
      Field(name: "autoclear_features", position: 88, bytes: 8),
      Field(name: "refcount_order", position: 96, bytes: 4, changesMeaning: true),
      Field(name: "header_length", position: 100, bytes: 4),
      Field(name: "compression_type", position: 104, bytes: 8),
    ]

    private static let counts: [UInt64] = [
      0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 14, 16, 20, 21, 22, 31, 32, 33, 63, 64, 65, 72, 103, 104,
      105, 112, 120, 128, 512, 520, 1023, 1024, 1025, 16384, 16385, 65535, 65536, 65537, 1 << 20,
      1 << 22, (1 << 22) + 1, 0x7fff_ffff, 0x8000_0000, 0xffff_fff8, 0xffff_ffff,
    ]

    private static func offsets(_ image: HandmadeImage) -> [UInt64] {
      let cluster = UInt64(image.clusterSize)
      let length = UInt64(image.bytes.count)
      let inside = (0...HandmadeImage.clusters).map { image.offset($0) }
      let near = inside.prefix(5).flatMap { [$0 &- 512, $0 &- 1, $0 + 1, $0 + 8, $0 + 512] }
      let far: [UInt64] = [
        length - 512, length - 8, length + cluster, 1 << 31, 1 << 32, 1 << 40, 1 << 55,
        (1 << 56) - cluster, 1 << 56, (1 << 56) + cluster, 1 << 61, 1 << 62, 1 << 63,
        0 &- cluster, 0 &- 512, UInt64.max - 1, UInt64.max,
      ]
      return inside + near + far
    }

    @Test(arguments: [2, 3], [9, 12])
    func anyValueOfAHeaderFieldIsRefusedOrServed(version: Int, clusterBits: Int) {
      let image = HandmadeImage(clusterBits: clusterBits, version: version)
      for field in Self.fields where version == 3 || field.position < Header.v2Length {
        let values = field.bytes == 4 ? Self.counts : Self.offsets(image) + Self.counts
        for value in values {
          var spoiled = image
          if field.bytes == 4 {
            spoiled.put32(UInt32(truncatingIfNeeded: value), at: field.position)
          } else {
            spoiled.put64(value, at: field.position)
          }
          Trial(
            "v\(version) \(clusterBits) bits: \(field.name) = \(hex(value))", spoiled.bytes,
            keepsOtherData: !field.changesMeaning
          ).run()
        }
      }
    }

    @Test(arguments: [2, 3], [9, 12])
    func aFileCutOffAnywhereIsRefusedOrServed(version: Int, clusterBits: Int) {
      let image = HandmadeImage(clusterBits: clusterBits, version: version)
      var lengths = Set(stride(from: 0, through: 600, by: 4))
      lengths.formUnion([1, 3, 71, 73, 103, 105, 111])
      for cluster in 0...HandmadeImage.clusters {
        for change in [-512, -8, -1, 0, 1, 8, 511, 512] {
          lengths.insert(cluster * image.clusterSize + change)
        }
      }
      for length in lengths.sorted() where length >= 0 && length <= image.bytes.count {
        Trial("v\(version) \(clusterBits) bits: cut to \(length)", Array(image.bytes[..<length]))
          .run()
      }
    }

    @Test func snapshotTablesThatCannotBeAreRefusedOrServed() {
      for count in [1, 2, 65536, 65537, UInt32.max] {
        let image = HandmadeImage()
        for offset in Self.offsets(image) {
          var spoiled = image
          spoiled.put32(count, at: 60)
          spoiled.put64(offset, at: 64)
          Trial("\(count) snapshots at \(hex(offset))", spoiled.bytes).run()
        }
      }
    }
  }
}
