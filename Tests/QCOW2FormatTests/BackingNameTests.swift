import QCOW2Format
import Testing

/// Another name of the backing file in the header cluster of an image in use.
@Suite struct BackingNameTests {
  private func cluster(
    _ name: String?, format: String?, unknown: Int = 0, size: Int = 4096
  ) throws -> [UInt8] {
    var header = Header(version: 3, clusterBits: size == 512 ? 9 : 12, size: 1 << 20)
    header.l1TableOffset = 1 << 16
    header.refcountTableOffset = 1 << 17
    header.refcountTableClusters = 1
    header.l1Size = size == 512 ? 32 : 1
    var extensions: [(kind: HeaderExtension.Kind, data: [UInt8])] = []
    if let format { extensions.append((.backingFormat, Array(format.utf8))) }
    if unknown > 0 {
      extensions.append((.init(rawValue: 0x1234_5678), [UInt8](repeating: 9, count: unknown)))
    }
    let bytes = HeaderCluster.encode(header, extensions: extensions, backingFile: name)
    return bytes + [UInt8](repeating: 0, count: size - bytes.count)
  }

  /// The cluster before and after the one write that counts.
  private func change(
    _ bytes: [UInt8], to name: String, _ format: String?
  ) throws -> (before: [UInt8], after: [UInt8]) {
    let change = try BackingNameChange(name, format: format, in: bytes.span)
    var before = bytes
    var span = before.mutableSpan
    _ = change.prepare(&span)
    var after = before
    var sector = after.mutableSpan
    change.write(into: &sector, version: 3)
    #expect(before[512...] == after[512...], "more than a sector changes at once")
    return (before, after)
  }

  private func names(_ bytes: [UInt8]) throws -> [String?] {
    let header = try HeaderCluster(parsing: bytes.span, fileLength: 1 << 20)
    return [header.backingFile, header.backingFormat, header.extensions.count.description]
  }

  @Test("The old name and format hold until the first sector is written, the new ones from then on")
  func oneSectorDecides() throws {
    let long = String(repeating: "n", count: 1000)
    for (old, oldFormat) in [("base", "raw"), (long, "raw"), ("base", nil), (nil, nil)] {
      for name in ["x", long] {
        for unknown in [0, 600] {
          let bytes = try cluster(old, format: oldFormat, unknown: unknown)
          let format = oldFormat == "raw" ? "qcow2" : old == nil ? "vmdk" : nil
          let (before, after) = try change(bytes, to: name, format)
          #expect(try names(before)[0] == old)
          let (held, first) = (try names(before), try names(bytes))
          #expect(old == nil || held == first)
          #expect(try names(after)[..<2] == [name, format])
        }
      }
    }
  }

  @Test("What has no place is refused")
  func whatHasNoPlace() throws {
    func refuses(_ bytes: [UInt8], _ name: String, _ format: String?) {
      #expect(throws: BackingNameChange.NoRoom.self) {
        _ = try BackingNameChange(name, format: format, in: bytes.span)
      }
    }
    let plain = try cluster("base", format: nil)
    refuses(plain, "", nil)
    refuses(plain, String(repeating: "n", count: 1024), nil)
    // A format must not belong to the old name for a while, and here it cannot come with the fields.
    let full = try cluster("base", format: nil, unknown: 600)
    refuses(full, "new", "raw")
    refuses(try cluster("base", format: "raw", unknown: 600), "new", nil)
    refuses(try cluster("base", format: "raw", unknown: 600), "new", "a long format")
    // Behind 3.5 KiB of something else there is no place for a long name.
    refuses(
      try cluster("base", format: nil, unknown: 3600), String(repeating: "n", count: 900), nil)
  }

  @Test(
    "A format comes, changes its length and goes, at once with the name, whatever else stands there"
  )
  func formats() throws {
    for unknown in [0, 16, 300] {
      for (old, new) in [
        (nil, "raw"), ("raw", nil), ("raw", "a much longer format"),
        ("a much longer format", "raw"),
      ] {
        for (from, to) in [("base", "n"), ("b", String(repeating: "n", count: 1000))] {
          let bytes = try cluster(from, format: old, unknown: unknown)
          let (before, after) = try change(bytes, to: to, new)
          #expect(try names(before)[..<2] == [from, old])
          let found = try HeaderCluster(parsing: after.span, fileLength: 1 << 20)
          #expect(found.backingFile == to && found.backingFormat == new)
          let rest = found.extensions.filter { $0.kind != .backingFormat }
          #expect(rest.map(\.length) == (unknown > 0 ? [unknown] : []))
          #expect(rest.allSatisfy { after[$0.bytes].allSatisfy { $0 == 9 } })
        }
      }
    }
  }

  @Test("The names of features make room, nothing else does")
  func featureNamesMakeRoom() throws {
    var header = Header(version: 3, clusterBits: 12, size: 1 << 20)
    (header.l1TableOffset, header.l1Size) = (1 << 16, 1)
    (header.refcountTableOffset, header.refcountTableClusters) = (1 << 17, 1)
    let table = [UInt8](repeating: 7, count: 48 * 8)
    let kinds: [(kind: HeaderExtension.Kind, data: [UInt8])] = [
      (.featureNames, table), (.init(rawValue: 0x1234_5678), [9, 9, 9]),
    ]
    let start = HeaderCluster.encode(header, extensions: kinds, backingFile: "base")
    let bytes =
      start + [UInt8](repeating: 0, count: 4096 - start.count)
    let (before, after) = try change(bytes, to: "new", "raw")
    #expect(try names(before) == ["base", nil, "2"])
    #expect(try names(after) == ["new", "raw", "2"])
    let found = try HeaderCluster(parsing: after.span, fileLength: 1 << 20)
    #expect(found.last(.featureNames) == nil)
    #expect(found.last(.init(rawValue: 0x1234_5678))?.length == 3)
  }

  @Test("In clusters of one sector the new name may take the old one's place")
  func oneSector() throws {
    let bytes = try cluster(String(repeating: "o", count: 300), format: nil, size: 512)
    let name = String(repeating: "n", count: 350)
    let (before, after) = try change(bytes, to: name, "qcow2")
    #expect(before == bytes)
    #expect(try names(after) == [name, "qcow2", "1"])
  }

  @Test("Without a backing file the fields are zero")
  func none() throws {
    var bytes = try cluster("base", format: "raw")
    var sector = bytes.mutableSpan
    BackingNameChange.none.write(into: &sector, version: 3)
    #expect(try names(bytes)[0] == nil && bytes[8..<20].allSatisfy { $0 == 0 })
  }
}
