import QCOW2Format
import Testing

/// Another name of the backing file in the header cluster of an image in use.
@Suite struct BackingNameTests {
  private func cluster(
    _ name: String?, format: String?, unknown: Int = 0, size: Int = 4096
  ) throws -> [UInt8] {
    var header = Header(version: 3, clusterBits: 12, size: 1 << 20)
    header.l1TableOffset = 1 << 16
    header.refcountTableOffset = 1 << 17
    header.refcountTableClusters = 1
    header.l1Size = 1
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
    // A format must not belong to the old name for a while.
    refuses(plain, "new", "raw")
    refuses(try cluster("base", format: "raw"), "new", nil)
    refuses(try cluster("base", format: "raw"), "new", "a long format")
    // Behind 3.5 KiB of something else there is no place for a long name.
    refuses(
      try cluster("base", format: nil, unknown: 3600), String(repeating: "n", count: 900), nil)
  }

  @Test("Without a backing file the fields are zero")
  func none() throws {
    var bytes = try cluster("base", format: "raw")
    var sector = bytes.mutableSpan
    BackingNameChange.none.write(into: &sector, version: 3)
    #expect(try names(bytes)[0] == nil && bytes[8..<20].allSatisfy { $0 == 0 })
  }
}
