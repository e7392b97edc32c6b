import BlockCore
package import DiskImages
package import JSON
import QCOW2Engine

/// Another virtual size for a disk: `truncate` of `qublk io`.
///
/// What is added reads as zeros, and what is cut off is gone. It is one step for the engine: a
/// cancellation comes before it or too late.
package struct ResizeJob: DiskJob {
  package static let name = "resize"
  package var changesImage: Bool { true }
  /// The new size in bytes.
  package var size: UInt64

  /// The job.
  package init(size: UInt64) { self.size = size }

  package init(_ arguments: inout JobArguments) throws(JobError) {
    guard let size = try arguments.unsigned("size") else {
      throw .arguments("argument \"size\" is missing")
    }
    self.size = size
  }

  package var arguments: JSONValue { .object([.init("size", .number(size))]) }

  package func run(
    on disk: any OpenDisk, _ context: JobContext<NoValue>
  ) async throws(JobError) -> NoValue {
    try await context.checkpoint()
    switch disk {
    case let disk as DiskImage:
      do throws(ImageError) { try await disk.engine.resize(to: size) } catch {
        throw .image(error)
      }
    case let disk as RawDisk:
      do throws(Errno) { try await disk.raw.resize(to: size) } catch { throw .raw(error) }
    default: throw .format(needed: .qcow2)
    }
    return NoValue()
  }
}
