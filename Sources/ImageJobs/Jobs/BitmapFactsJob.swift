package import DiskImages
package import JSON
import QCOW2Engine

/// What one persistent bitmap says in all: looked at before a backup.
package struct BitmapFactsJob: DiskJob {
  /// The facts.
  package struct Outcome: JobValue {
    /// The bytes that one bit stands for.
    package var granularity: UInt64
    /// The bytes of the disk that have changed.
    package var dirtyBytes: UInt64

    package init(granularity: UInt64, dirtyBytes: UInt64) {
      self.granularity = granularity
      self.dirtyBytes = dirtyBytes
    }

    package init?(json: JSONValue) {
      guard let granularity = json["granularity"]?.unsigned,
        let dirtyBytes = json["dirty-bytes"]?.unsigned
      else { return nil }
      self.init(granularity: granularity, dirtyBytes: dirtyBytes)
    }

    package var json: JSONValue {
      .object([
        .init("granularity", .number(granularity)), .init("dirty-bytes", .number(dirtyBytes)),
      ])
    }
  }

  package static let name = "bitmap-facts"
  package var changesImage: Bool { false }
  /// The bitmap's name.
  package var bitmap: String

  /// The job.
  package init(bitmap: String) { self.bitmap = bitmap }

  package init(_ arguments: inout JobArguments) throws(JobError) {
    guard let bitmap = try arguments.string("bitmap") else {
      throw .arguments("argument \"bitmap\" is missing")
    }
    self.bitmap = bitmap
  }

  package var arguments: JSONValue { .object([.init("bitmap", .string(bitmap))]) }

  package func run(
    on disk: any OpenDisk, _ context: JobContext<NoValue>
  ) async throws(JobError) -> Outcome {
    guard let image = (disk as? DiskImage)?.engine else { throw .format(needed: .qcow2) }
    do throws(ImageError) {
      var ranges = try await image.dirtyRanges(of: bitmap)
      var bytes: UInt64 = 0
      while let range = try await ranges.next() { bytes += UInt64(range.count) }
      return Outcome(granularity: ranges.granularity, dirtyBytes: bytes)
    } catch { throw .image(error) }
  }
}
