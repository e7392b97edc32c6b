import BlockCore

/// Another header for an image: fields, extensions and their order, brought into force by one write of the
/// first sector, which disks write whole or not at all.
///
/// What does not fit in the first sector goes to bytes of the header cluster that nothing points at, before
/// that write or after it. Only the backing file's name and the feature name table may lie outside of it.
/// The table tells people what bits are called and means nothing to programs: it is completed after the
/// write, and left out if the cluster has no room for it. So a crash leaves the old header or the new one,
/// at worst without some names of features.
public struct HeaderRewrite: Equatable, Sendable {
  /// The header cluster has no room for all of it.
  public struct NoRoom: Error, Sendable {}

  /// Bytes and where they go, in whole sectors, counted from the start of the file.
  public struct Part: Equatable, Sendable {
    public let offset: Int
    public let bytes: [UInt8]

    public init(offset: Int, bytes: [UInt8]) {
      self.offset = offset
      self.bytes = bytes
    }
  }

  /// What is to be durable before the first sector is written; nil for nothing.
  public let before: Part?
  /// The first sector that brings the header into force.
  public let sector: [UInt8]
  /// What completes the feature name table afterwards, in this order, each part durable before the next.
  public let after: [Part]
  /// The header as it is then.
  public let header: Header

  /// - Parameters:
  ///   - cluster: The whole header cluster as it is.
  ///   - wanted: The fields; where the backing file's name lies is filled in.
  ///   - extensions: All that the image is to have, feature names included.
  /// - Throws: ``NoRoom``, or what breaks the format of the present header.
  public init(
    _ cluster: Span<UInt8>, to wanted: Header,
    extensions: [(kind: HeaderExtension.Kind, data: [UInt8])]
  ) throws {
    let found = try HeaderCluster(parsing: cluster, fileLength: UInt64(cluster.count))
    let names = extensions.first { $0.kind == .featureNames }?.data ?? []
    let essential = extensions.filter { $0.kind != .featureNames }
    let room = Room(
      cluster: cluster.copy(0..<cluster.count), old: found.header, wanted: wanted,
      essential: essential.flatMap { HeaderExtension.encode($0.kind, $0.data) })
    guard let layout = room.layout(names: names) ?? room.layout(names: []) else { throw NoRoom() }
    self = room.rewrite(layout)
  }

  private init(before: Part?, sector: [UInt8], after: [Part], header: Header) {
    self.before = before
    self.sector = sector
    self.after = after
    self.header = header
  }

  /// Where things go.
  private struct Layout {
    var names: [UInt8]
    /// Where the extensions end, their end marker included.
    var end: Int
    /// The backing file's name; empty for none.
    var name: Range<Int>
    /// The name is not where it was, and not in the first sector as a whole.
    var movesName: Bool
  }

  /// What is there, and what is to be.
  private struct Room {
    let cluster: [UInt8]
    let old: Header
    let wanted: Header
    let essential: [UInt8]
    private let sectorLength = HeaderPatch.sectorLength

    init(cluster: [UInt8], old: Header, wanted: Header, essential: [UInt8]) {
      self.cluster = cluster
      self.old = old
      self.wanted = wanted
      self.essential = essential
    }

    private var start: Int { Int(wanted.headerLength) }
    private var oldName: Range<Int> {
      if old.backingFileOffset == 0 { return 0..<0 }
      let first = Int(old.backingFileOffset)
      return first..<(first + Int(old.backingFileSize))
    }

    /// Nil if there is no room.
    func layout(names: [UInt8]) -> Layout? {
      let least = start + essential.count + 8
      guard least <= min(sectorLength, cluster.count) else { return nil }
      let end = least + (names.isEmpty ? 0 : HeaderExtension.encode(.featureNames, names).count)
      guard end <= cluster.count else { return nil }
      let old = oldName
      if old.isEmpty || old.lowerBound >= end {
        return Layout(names: names, end: end, name: old, movesName: false)
      }
      if end + old.count <= sectorLength {
        return Layout(names: names, end: end, name: end..<(end + old.count), movesName: false)
      }
      let place = max(end, old.upperBound)
      guard place + old.count <= cluster.count else { return nil }
      return Layout(names: names, end: end, name: place..<(place + old.count), movesName: true)
    }

    func rewrite(_ layout: Layout) -> HeaderRewrite {
      var header = wanted
      header.backingFileOffset = layout.name.isEmpty ? 0 : UInt64(layout.name.lowerBound)
      header.backingFileSize = UInt32(layout.name.count)
      var image = cluster
      image.replaceSubrange(layout.name, with: cluster[oldName])
      let before = layout.movesName ? part(of: image, layout.name) : nil
      let whole = overlay(image, header, layout, names: layout.names)
      // Whole entries of the table, as many as the first sector has room for.
      let room = sectorLength - start - essential.count - 16
      let fitting = max(room, 0) / FeatureNames.entryLength * FeatureNames.entryLength
      let names = layout.end > sectorLength ? Array(layout.names.prefix(fitting)) : layout.names
      let sector = Array(overlay(image, header, layout, names: names).prefix(sectorLength))
      var after: [Part] = []
      if layout.end > sectorLength {
        after = [
          part(of: whole, sectorLength..<layout.end), part(of: whole, 0..<sectorLength),
        ]
      }
      return HeaderRewrite(before: before, sector: sector, after: after, header: header)
    }

    /// The cluster with the new header, zeros between the extensions and the name or the sector's end.
    private func overlay(
      _ image: [UInt8], _ header: Header, _ layout: Layout, names: [UInt8]
    ) -> [UInt8] {
      var bytes = header.encoded
      // Fields that nobody here knows.
      let known = Header.newV3Length
      if old.version == header.version, old.headerLength == header.headerLength, bytes.count > known
      {
        bytes.replaceSubrange(known..., with: cluster[known..<bytes.count])
      }
      bytes += essential
      if !names.isEmpty { bytes += HeaderExtension.encode(.featureNames, names) }
      bytes += HeaderExtension.encode(.end)
      var result = image
      result.replaceSubrange(0..<bytes.count, with: bytes)
      let end = max(bytes.count, sectorLength)
      for index in bytes.count..<end where !layout.name.contains(index) { result[index] = 0 }
      return result
    }

    /// The whole sectors that a range touches.
    private func part(of image: [UInt8], _ range: Range<Int>) -> Part {
      let first = range.lowerBound / sectorLength * sectorLength
      let end = min(
        (range.upperBound + sectorLength - 1) / sectorLength * sectorLength, image.count)
      return Part(offset: first, bytes: Array(image[first..<end]))
    }
  }
}

extension HeaderCluster {
  /// The extensions as they stand, to be written again.
  ///
  /// - Parameter cluster: What the header was read from.
  /// - Returns: In order, those of unknown types included.
  public func contents(
    _ cluster: Span<UInt8>
  ) -> [(kind: HeaderExtension.Kind, data: [UInt8])] {
    extensions.map { ($0.kind, cluster.copy($0.bytes)) }
  }
}
