import BlockCore

/// Another name of the backing file, for an image that is in use.
///
/// The name goes to bytes of the header cluster that nothing points at. Once these are durable, one
/// write of the first sector, which disks write whole or not at all, makes it the one in force. So a
/// crash leaves the old name or the new one. No name needs the sector alone.
public struct BackingNameChange: Equatable, Sendable {
  /// Why there is no place for a name.
  public struct NoRoom: Error, Sendable {}

  /// Bytes and where they go, counted from the start of the file.
  struct Part: Equatable, Sendable {
    var offset: Int
    var bytes: [UInt8]
    var range: Range<Int> { offset..<(offset + bytes.count) }
  }

  /// The most bytes of a name.
  public static let mostBytes = 1023

  /// What is to be durable before the first sector is written.
  private(set) var before: [Part] = []
  /// What changes in the first sector together with the fields.
  private(set) var together: [Part] = []
  public let patch: HeaderPatch

  /// No backing file.
  ///
  /// An extension that names its format stays, and means nothing.
  public static let none = BackingNameChange(patch: .backingFile(offset: 0, length: 0))

  private init(patch: HeaderPatch) { self.patch = patch }

  /// - Parameters:
  ///   - name: As it is to stand in the image.
  ///   - format: What the header is to say of its format; nil if it is to say nothing.
  ///   - cluster: The header cluster, with the name and the extensions that are in force.
  /// - Throws: ``NoRoom`` if there is no place for all of that; else what breaks the format.
  public init(_ name: String, format: String?, in cluster: Span<UInt8>) throws {
    let found = try HeaderCluster(parsing: cluster, fileLength: UInt64(cluster.count))
    let bytes = Array(name.utf8)
    let old = found.nameRange
    var end = try found.endOfExtensions(cluster)
    var parts: [Part] = []
    var together: [Part] = []
    if format != found.backingFormat {
      guard let format else { throw NoRoom() }
      let encoded = HeaderExtension.encode(.backingFormat, Array(format.utf8))
      if let present = found.last(.backingFormat) {
        // In place, and at once with the fields: until then it belongs to the old name.
        let part = Part(offset: present.offset - 8, bytes: encoded)
        guard encoded.count == HeaderExtension.encodedLength(present.length),
          part.range.upperBound <= HeaderPatch.sectorLength
        else { throw NoRoom() }
        together.append(part)
      } else {
        // Without a name in force a format means nothing.
        guard old.isEmpty else { throw NoRoom() }
        let part = Part(offset: end - 8, bytes: encoded + HeaderExtension.encode(.end))
        // Zeros behind it end the extensions, too, if not all of its sectors are written.
        guard part.range.upperBound <= cluster.count,
          part.range.allSatisfy({ cluster[$0] == 0 })
        else { throw NoRoom() }
        parts.append(part)
        end = part.range.upperBound
      }
    }
    let isBefore = old.isEmpty || end + bytes.count <= old.lowerBound
    let place = isBefore ? end : max(end, old.upperBound)
    let part = Part(offset: place, bytes: bytes)
    guard !bytes.isEmpty, bytes.count <= Self.mostBytes,
      part.range.upperBound <= cluster.count
    else { throw NoRoom() }
    self.init(
      patch: .backingFile(offset: UInt64(part.offset), length: UInt32(bytes.count)))
    before = parts + [part]
    self.together = together
  }

  /// Writes what must be durable first; the bytes may be those of the whole cluster.
  ///
  /// - Returns: The bytes that have changed; empty if nothing comes first.
  public func prepare(_ cluster: inout MutableSpan<UInt8>) -> Range<Int> {
    for part in before { Self.write(part, into: &cluster) }
    guard let first = before.map(\.range.lowerBound).min(),
      let last = before.map(\.range.upperBound).max()
    else { return 0..<0 }
    return first..<last
  }

  /// Writes what comes with the fields, and the fields.
  public func write(into sector: inout MutableSpan<UInt8>, version: UInt32) {
    for part in together { Self.write(part, into: &sector) }
    patch.write(into: &sector, version: version)
  }

  private static func write(_ part: Part, into bytes: inout MutableSpan<UInt8>) {
    for (index, byte) in part.bytes.enumerated() { bytes[part.offset + index] = byte }
  }
}

extension HeaderCluster {
  /// Where the backing file's name lies; at the end of everything if there is none.
  fileprivate var nameRange: Range<Int> {
    guard backingFile != nil else { return Int.max..<Int.max }
    let start = Int(header.backingFileOffset)
    return start..<(start + Int(header.backingFileSize))
  }

  /// The first byte behind the end marker of the extensions.
  fileprivate func endOfExtensions(_ cluster: Span<UInt8>) throws -> Int {
    var end = Int(header.headerLength)
    if let last = extensions.last {
      end = last.offset - 8 + HeaderExtension.encodedLength(last.length)
    }
    // Without a marker the old name is what ends them: behind it they would go on.
    guard end + 8 <= min(nameRange.lowerBound, cluster.count), cluster.be64(end) == 0 else {
      throw BackingNameChange.NoRoom()
    }
    return end + 8
  }
}
