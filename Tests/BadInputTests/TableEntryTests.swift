import QCOW2Format
import Testing

extension BadInputTests {
  /// Entries of all tables that break the format, or point where they must not.
  struct TableEntryTests {
    private static let copied = HandmadeImage.copied

    /// What an offset field may wrongly hold: inside and outside the file, aligned and not.
    private static func wrongOffsets(_ image: HandmadeImage) -> [UInt64] {
      let cluster = UInt64(image.clusterSize)
      let inside = (0...HandmadeImage.clusters).map { image.offset($0) }
      return inside + [
        512, cluster + 512, 3 * cluster + 512, 1, 8, 0x100, cluster | 1, cluster | 0x1fe,
        image.offset(HandmadeImage.clusters + 1), image.offset(100), 1 << 30, 1 << 40, 1 << 47,
        1 << 55, (1 << 56) - cluster, (1 << 56) - 512, 1 << 56, 1 << 60, 1 << 61,
        (1 << 62) | cluster, (1 << 62) | 0x3ff_ffff_ffff_ffff, 0x7fff_ffff_ffff_ffff,
      ]
    }

    @Test(arguments: [2, 3], [9, 12, 16])
    func anyL1EntryIsRefusedOrServed(version: Int, clusterBits: Int) {
      let image = HandmadeImage(clusterBits: clusterBits, version: version)
      for value in Self.wrongOffsets(image) {
        for flag in [0, Self.copied] {
          for index in 0..<2 {
            var spoiled = image
            spoiled.put64(value | flag, at: image.start(HandmadeImage.l1Table) + index * 8)
            // Somebody's data taken for a table is lost to it: only a check of all tables finds
            // that.
            let host = (value & 0x00ff_ffff_ffff_fe00) >> UInt64(clusterBits)
            Trial(
              "v\(version) \(clusterBits) bits: L1[\(index)] = \(hex(value | flag))",
              spoiled.bytes, keepsOtherData: host < UInt64(HandmadeImage.firstData) || host >= 100
            ).run()
          }
        }
      }
    }

    @Test(arguments: [2, 3], [9, 12, 16])
    func anyL2EntryIsRefusedOrServed(version: Int, clusterBits: Int) {
      let image = HandmadeImage(clusterBits: clusterBits, version: version)
      for value in Self.wrongOffsets(image) {
        for flag in [0, Self.copied, 1, Self.copied | 1] {
          for index in [0, 5] {
            var spoiled = image
            spoiled.put64(value | flag, at: image.positionOfEntry(index))
            // Two guest clusters in one host cluster, one in a free cluster, or one in a table,
            // which changes while it is read as data: a check finds it.
            let host = (value & 0x00ff_ffff_ffff_fe00) >> UInt64(clusterBits)
            Trial(
              "v\(version) \(clusterBits) bits: L2[\(index)] = \(hex(value | flag))",
              spoiled.bytes, keepsOtherData: host == 0 || host >= 100
            ).run()
          }
        }
      }
    }

    @Test(arguments: [9, 12, 16])
    func anyRefcountTableEntryIsRefusedOrServed(clusterBits: Int) {
      let image = HandmadeImage(clusterBits: clusterBits)
      for value in Self.wrongOffsets(image) + [0] {
        for flag in [0, Self.copied] {
          for index in 0..<2 {
            var spoiled = image
            spoiled.put64(value | flag, at: image.start(HandmadeImage.refcountTable) + index * 8)
            // With zeros for refcounts, data clusters count as free: a check finds it.
            Trial(
              "\(clusterBits) bits: refcount table[\(index)] = \(hex(value | flag))",
              spoiled.bytes, keepsOtherData: index == 1
            ).run()
          }
        }
      }
    }

    @Test(arguments: [9, 12, 16])
    func anyRefcountIsRefusedOrServed(clusterBits: Int) {
      let image = HandmadeImage(clusterBits: clusterBits)
      for cluster in 0..<HandmadeImage.clusters {
        for value: UInt16 in [0, 2, 3, 0x7fff, 0xffff] {
          var spoiled = image
          spoiled.setRefcount(value, cluster)
          let frees = value == 0 && cluster >= HandmadeImage.firstData
          Trial(
            "\(clusterBits) bits: refcount[\(cluster)] = \(value)", spoiled.bytes,
            keepsOtherData: !frees
          ).run()
        }
      }
      var spoiled = image
      for cluster in 0..<HandmadeImage.clusters { spoiled.setRefcount(0, cluster) }
      Trial("all refcounts zero", spoiled.bytes, keepsOtherData: true).run()
      for cluster in 0..<(image.clusterSize / 2) { spoiled.setRefcount(0xffff, cluster) }
      Trial("all refcounts 65535", spoiled.bytes).run()
    }
  }
}
