package import DiskImages
package import JSON
import QCOW2Engine

/// A new internal snapshot: `snapshot -c`.
///
/// On a disk in use it is the disk at one moment, while requests are kept out for milliseconds. A
/// cancellation takes all back.
package struct SnapshotCreateJob: DiskJob {
  /// The snapshot.
  package struct Outcome: JobValue {
    /// The ID that it has got.
    package var id: String
    /// For how many microseconds requests were kept out.
    package var pauseMicroseconds: UInt64

    /// `pause_ms` is in milliseconds.
    package var json: JSONValue {
      .object([
        .init("id", .string(id)),
        .init("pause_ms", .decimal(Double(pauseMicroseconds) / 1000, digits: 3)),
      ])
    }

    package init?(json: JSONValue) {
      guard let id = json["id"]?.string, case .fraction(let text)? = json["pause_ms"],
        let pause = Double(text), let whole = UInt64(exactly: (pause * 1000).rounded())
      else { return nil }
      self.init(id: id, pauseMicroseconds: whole)
    }

    init(id: String, pauseMicroseconds: UInt64) {
      self.id = id
      self.pauseMicroseconds = pauseMicroseconds
    }
  }

  package static let name = "snapshot-create"
  package var changesImage: Bool { true }
  /// The name of the snapshot; others may have it, too.
  package var snapshot: String

  /// The job.
  package init(named snapshot: String) { self.snapshot = snapshot }

  package init(_ arguments: inout JobArguments) throws(JobError) {
    guard let name = try arguments.string("name") else {
      throw .arguments("argument \"name\" is missing")
    }
    snapshot = name
  }

  package var arguments: JSONValue { .object([.init("name", .string(snapshot))]) }

  package func run(
    on disk: any OpenDisk, _ context: JobContext<NoValue>
  ) async throws(JobError) -> Outcome {
    try await context.checkpoint()
    let engine = try SnapshotTarget.engine(of: disk)
    let created: CreatedSnapshot?
    do throws(ImageError) {
      created = try await engine.createSnapshot(named: snapshot, SnapshotTarget.progress(context))
    } catch { throw .image(error) }
    guard let created else { throw .cancelled }
    return Outcome(id: created.id, pauseMicroseconds: created.pause / 1000)
  }
}
