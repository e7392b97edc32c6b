import BlockCore
package import DiskImages
package import JSON
import QCOW2Engine
import QCOW2Format
import QCOW2Tools

/// What a disk has that a copy of it would need room for: `measure` of an image.
package struct MeasureJob: DiskJob {
  package static let name = "measure"
  package var changesImage: Bool { false }
  /// log2 of the cluster size of the copy; data is counted in such clusters.
  package var clusterBits = 16
  /// Data is counted; else only the size and the bitmaps.
  package var countsData = true

  /// The job.
  package init(clusterBits: Int, countsData: Bool) {
    self.clusterBits = clusterBits
    self.countsData = countsData
  }

  package init(_ arguments: inout JobArguments) throws(JobError) {
    if let bits = try arguments.unsigned("cluster-bits") {
      guard (9...21).contains(bits) else {
        throw .arguments("argument \"cluster-bits\" is \(bits), expected 9 to 21")
      }
      clusterBits = Int(bits)
    }
    countsData = try arguments.bool("counts-data") ?? true
  }

  package var arguments: JSONValue {
    .object([
      .init("cluster-bits", .count(clusterBits)), .init("counts-data", .bool(countsData)),
    ])
  }

  package func run(
    on disk: any OpenDisk, _ context: JobContext<NoValue>
  ) async throws(JobError) -> MeasuredSource {
    let size = disk.target.size
    context.progress.begin(size, .bytes)
    var source = MeasuredSource(size: size)
    if countsData { source.data = try await data(of: disk, size, context) }
    source.bitmaps = try bitmapBytes(disk)
    return source
  }

  private func data(
    of disk: any OpenDisk, _ size: UInt64, _ context: JobContext<NoValue>
  ) async throws(JobError) -> UInt64 {
    let mask = (UInt64(1) << UInt64(clusterBits)) - 1
    var bytes: UInt64 = 0
    var next: UInt64 = 0
    while next < size {
      try await context.checkpoint()
      let found: BlockStatus
      do throws(ImageError) {
        found = try await disk.status(at: GuestOffset(next), length: size - next)
      } catch { throw .image(error) }
      var end = next + found.length
      let isData = found.kind == .data || found.kind == .compressed
      if isData && !found.isHole {
        // Whole clusters; a disk ends below 2^63.
        end = (end + mask) & ~mask
        bytes += end - next & ~mask
      }
      next = end
      context.progress.reach(min(next, size))
    }
    return bytes
  }

  /// The room for the bitmaps; nil of what cannot have some.
  private func bitmapBytes(_ disk: any OpenDisk) throws(JobError) -> UInt64? {
    guard let image = disk as? DiskImage, image.engine.header.version >= 3 else { return nil }
    do throws(ToolError) {
      let bytes = try image.imageBytes()
      let head = try HeaderCluster(reading: bytes)
      guard case .success(let place) = head.trustedBitmaps else { return 0 }
      let list = try BitmapList.read(bytes, head, place).map {
        (UInt64($0.name.utf8.count), UInt64($0.entry.granularityBits))
      }
      return MeasuredSize.bitmapBytes(
        list, diskSize: disk.target.size, clusterBits: UInt64(clusterBits))
    } catch { throw .file(error) }
  }
}

/// What ``MeasureJob`` found.
package struct MeasuredSource: JobValue {
  /// Of the disk, in bytes.
  package var size: UInt64
  /// The bytes of clusters with data; nil if they were not counted.
  package var data: UInt64?
  /// The bytes for bitmaps; nil of what cannot have some.
  package var bitmaps: UInt64?

  /// A disk of which only the size is known.
  package init(size: UInt64) { self.size = size }

  package var json: JSONValue {
    var members: [JSONValue.Member] = [.init("size", .number(size))]
    if let data { members.append(.init("data", .number(data))) }
    if let bitmaps { members.append(.init("bitmaps", .number(bitmaps))) }
    return .object(members)
  }

  package init?(json: JSONValue) {
    guard let size = json["size"]?.unsigned else { return nil }
    self.size = size
    data = json["data"]?.unsigned
    bitmaps = json["bitmaps"]?.unsigned
  }
}
