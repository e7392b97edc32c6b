package import JSON
import QCOW2Format
package import QCOW2Tools

/// The internal snapshots of an image: `snapshot -l`.
package struct SnapshotListJob: FileJob {
  package static let name = "snapshot-list"
  package var changesImage: Bool { false }
  package var arguments: JSONValue { .object([]) }

  /// The job.
  package init() {}

  package init(_ arguments: inout JobArguments) throws(JobError) {}

  package func run(
    on file: ImageFile, _ context: JobContext<NoValue>
  ) async throws(JobError) -> SnapshotListReport {
    try await context.checkpoint()
    do throws(ToolError) {
      let head = try HeaderCluster(reading: file.bytes)
      return SnapshotListReport(try SnapshotList(reading: file.bytes, head).snapshots)
    } catch { throw .file(error) }
  }
}

extension SnapshotListReport: JobValue {}
