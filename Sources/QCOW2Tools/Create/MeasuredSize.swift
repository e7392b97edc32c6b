package import JSON
import QCOW2Format

/// The room that a new image needs on its host: what `measure` answers.
package struct MeasuredSize: Equatable, Sendable {
  /// In bytes, for what is to be written into it.
  package var required: UInt64
  /// In bytes, when every cluster has data.
  package var fullyAllocated: UInt64
  /// In bytes, for the bitmaps of the source; nil if it is no image that could have some.
  package var bitmaps: UInt64?

  /// A raw image.
  package init(rawSize: UInt64) {
    required = rawSize
    fullyAllocated = rawSize
  }

  /// A qcow2 image.
  ///
  /// All tables are counted as if every cluster were mapped, as QEMU does, so that the image never
  /// needs more than this.
  ///
  /// - Parameters:
  ///   - options: How the image is to be made; its size does not count.
  ///   - size: Of the disk, in bytes.
  ///   - data: The bytes of clusters with data; those of the whole disk for nil.
  /// - Throws: ``OptionError/sizeTooLarge(size:largest:clusterSize:)``.
  package init(
    _ options: CreateOptions, size: UInt64, data: UInt64?
  ) throws(OptionError) {
    let geometry = ClusterGeometry(
      clusterBits: options.clusterBits, refcountOrder: options.refcountOrder,
      extendedL2: options.extendedL2)
    let largest = FormatLimit.l1Bytes / 8 * geometry.bytesPerL2Table
    guard size <= largest else {
      throw .sizeTooLarge(size: size, largest: largest, clusterSize: geometry.clusterSize)
    }
    let disk = geometry.clusters(covering: size)
    let tables = geometry.l1EntriesNeeded(forSize: size)
    let mapped = 1 + tables + geometry.clusters(covering: tables * 8) + disk
    let encryption = geometry.clusters(covering: UInt64(options.encryption?.headerLength ?? 0))
    // Those of the encryption header are not counted: QEMU leaves them out.
    let all = mapped + Self.refcountClusters(for: mapped, geometry) + encryption
    let isFull = options.preallocation == .full || options.preallocation == .falloc
    let whole = disk << UInt64(geometry.clusterBits)
    fullyAllocated = all << UInt64(geometry.clusterBits)
    required = fullyAllocated - whole + (isFull ? whole : min(data ?? whole, whole))
  }

  /// The clusters of a refcount table and blocks that count so many others and themselves.
  private static func refcountClusters(for others: UInt64, _ geometry: ClusterGeometry) -> UInt64 {
    let perBlock = (geometry.clusterSize << 3) >> UInt64(geometry.refcountOrder)
    var own: UInt64 = 0
    while true {
      let blocks = (others + own + perBlock - 1) / perBlock
      let needed = blocks + geometry.clusters(covering: blocks * 8)
      if needed == own { return own }
      own = needed
    }
  }

  /// The bytes of bitmaps in an image with clusters of this size, all of them full.
  ///
  /// - Parameters:
  ///   - bitmaps: For each the bytes of its name and log2 of its granularity.
  ///   - diskSize: In bytes.
  ///   - clusterBits: log2 of the cluster size.
  /// - Returns: Data, tables and directory together.
  package static func bitmapBytes(
    _ bitmaps: [(nameLength: UInt64, granularityBits: UInt64)], diskSize: UInt64,
    clusterBits: UInt64
  ) -> UInt64 {
    func clusters(_ bytes: UInt64) -> UInt64 { (bytes + (1 << clusterBits) - 1) >> clusterBits }
    var count: UInt64 = 0
    var directory: UInt64 = 0
    for bitmap in bitmaps {
      // Bounded by the header: a granularity is below 2^64, a disk below 2^63.
      let bits = (diskSize >> bitmap.granularityBits) + 1
      let exact = diskSize & ((1 << bitmap.granularityBits) - 1) == 0 ? bits - 1 : bits
      let data = clusters((exact + 7) / 8)
      count += data + clusters(data * 8)
      directory += (24 + bitmap.nameLength + 7) & ~7
    }
    return (count + clusters(directory)) << clusterBits
  }
}

extension MeasuredSize {
  /// The text for people, with line breaks.
  package var humanText: String {
    "required size: \(required)\nfully allocated size: \(fullyAllocated)\n"
      + (bitmaps.map { "bitmaps size: \($0)\n" } ?? "")
  }

  /// The object with qemu-img's keys.
  package var json: JSONValue {
    var members: [JSONValue.Member] = []
    if let bitmaps { members.append(.init("bitmaps", .number(bitmaps))) }
    members.append(.init("required", .number(required)))
    members.append(.init("fully-allocated", .number(fullyAllocated)))
    return .object(members)
  }
}
