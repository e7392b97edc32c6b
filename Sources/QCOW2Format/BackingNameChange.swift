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

  /// Another name.
  ///
  /// Extensions stand as before, with the format in its place. They all change in the first sector, with
  /// the fields; the names of features go if nothing else makes room there.
  ///
  /// - Parameters:
  ///   - name: As it is to stand in the image.
  ///   - format: What the header is to say of its format; nil if it is to say nothing.
  ///   - cluster: The header cluster, with the name and the extensions that are in force.
  /// - Throws: ``NoRoom`` if there is no place for all of that; else what breaks the format.
  public init(_ name: String, format: String?, in cluster: Span<UInt8>) throws {
    let found = try HeaderCluster(parsing: cluster, fileLength: UInt64(cluster.count))
    let bytes = Array(name.utf8)
    guard !bytes.isEmpty, bytes.count <= Self.mostBytes else { throw NoRoom() }
    let places = Places(found, cluster)
    for dropsNames in [false, true] {
      let area = found.extensionArea(format, dropsNames: dropsNames, cluster)
      if let parts = places.parts(area, bytes, cluster) {
        self.init(patch: parts.patch)
        (before, together) = (parts.before, parts.together)
        return
      }
    }
    guard let parts = places.appended(format, bytes, found, cluster) else { throw NoRoom() }
    self.init(patch: parts.patch)
    (before, together) = (parts.before, parts.together)
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

/// Where in a header cluster a name and the extensions can go.
private struct Places {
  typealias Parts = (
    before: [BackingNameChange.Part], together: [BackingNameChange.Part], patch: HeaderPatch
  )

  /// The first byte behind the header.
  private let start: Int
  /// The first byte behind the extensions in force and their end marker.
  private let end: Int
  /// The name in force; empty if there is none.
  private let old: Range<Int>

  init(_ found: HeaderCluster, _ cluster: Span<UInt8>) {
    start = Int(found.header.headerLength)
    end = found.endOfExtensions(cluster)
    old = found.nameRange
  }

  /// What to write for extensions that stand in `area`, which replaces those in force.
  ///
  /// - Returns: Nil if there is no place, or if more than the first sector had to change at once.
  func parts(_ area: [UInt8], _ name: [UInt8], _ cluster: Span<UInt8>) -> Parts? {
    let newEnd = start + area.count
    guard newEnd <= cluster.count else { return nil }
    let changed = area.indices.filter { cluster[start + $0] != area[$0] }
    guard start + (changed.last ?? 0) < HeaderPatch.sectorLength else { return nil }
    let together =
      changed.isEmpty
      ? []
      : [
        BackingNameChange.Part(
          offset: start, bytes: Array(area.prefix(HeaderPatch.sectorLength - start)))
      ]
    if let place = place(of: name.count, behind: max(end, newEnd), cluster.count) {
      return parts([BackingNameChange.Part(offset: place, bytes: name)], together, at: place, name)
    }
    // Old and new name need not stand side by side where one write replaces all of it.
    guard newEnd + name.count <= min(HeaderPatch.sectorLength, cluster.count) else { return nil }
    let part = BackingNameChange.Part(offset: newEnd, bytes: name)
    return parts([], together + [part], at: newEnd, name)
  }

  /// What to write for a format behind all other extensions, where no name is in force: until there is
  /// one, a format means nothing.
  func appended(
    _ format: String?, _ name: [UInt8], _ found: HeaderCluster, _ cluster: Span<UInt8>
  ) -> Parts? {
    guard old.isEmpty, found.last(.backingFormat) == nil, let format, end - 8 >= start else {
      return nil
    }
    let part = BackingNameChange.Part(
      offset: end - 8,
      bytes: HeaderExtension.encode(.backingFormat, Array(format.utf8))
        + HeaderExtension.encode(.end))
    // Zeros behind it end the extensions, too, if not all of its sectors are written.
    guard part.range.upperBound <= cluster.count,
      part.range.allSatisfy({ cluster[$0] == 0 }),
      let place = place(of: name.count, behind: part.range.upperBound, cluster.count)
    else { return nil }
    let named = BackingNameChange.Part(offset: place, bytes: name)
    return parts([part, named], [], at: place, name)
  }

  private func parts(
    _ before: [BackingNameChange.Part], _ together: [BackingNameChange.Part], at place: Int,
    _ name: [UInt8]
  ) -> Parts {
    (before, together, .backingFile(offset: UInt64(place), length: UInt32(name.count)))
  }

  /// A place for `count` bytes from `first` on that leaves the name in force alone.
  private func place(of count: Int, behind first: Int, _ clusterSize: Int) -> Int? {
    let isBefore = old.isEmpty || first + count <= old.lowerBound
    let place = isBefore ? first : max(first, old.upperBound)
    return place + count <= clusterSize ? place : nil
  }
}

extension HeaderCluster {
  /// Where the backing file's name lies; empty if there is none.
  fileprivate var nameRange: Range<Int> {
    guard backingFile != nil else { return 0..<0 }
    let start = Int(header.backingFileOffset)
    return start..<(start + Int(header.backingFileSize))
  }

  /// The first byte behind the extensions, and behind their end marker if they have one.
  fileprivate func endOfExtensions(_ cluster: Span<UInt8>) -> Int {
    let end =
      extensions.last.map { $0.offset - 8 + HeaderExtension.encodedLength($0.length) }
      ?? Int(header.headerLength)
    let limit = nameRange.isEmpty ? cluster.count : min(nameRange.lowerBound, cluster.count)
    return end + 8 <= limit && cluster.be64(end) == 0 ? end + 8 : end
  }

  /// The bytes of all extensions and their end marker, with another format of the backing file.
  fileprivate func extensionArea(
    _ format: String?, dropsNames: Bool, _ cluster: Span<UInt8>
  ) -> [UInt8] {
    let encoded = format.map { HeaderExtension.encode(.backingFormat, Array($0.utf8)) } ?? []
    var area: [UInt8] = last(.backingFormat) == nil ? encoded : []
    for found in extensions {
      switch found.kind {
      case .backingFormat: if found == last(.backingFormat) { area += encoded }
      case .featureNames where dropsNames: break
      default:
        area += HeaderExtension.encode(found.kind, cluster.copy(found.bytes))
      }
    }
    return area + HeaderExtension.encode(.end)
  }
}
