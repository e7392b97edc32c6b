package import DiskImages
package import JSON
package import QCOW2Engine

/// A job that does one thing with one internal snapshot, in steps that the engine counts.
package protocol SnapshotChange: DiskJob {
  /// Which one; of several the first.
  var snapshot: SnapshotSelector { get }

  /// The job.
  init(_ snapshot: SnapshotSelector)

  /// Does it.
  ///
  /// - Returns: Whether it is done: not if the job was cancelled before the first step.
  func change(_ image: Image, _ progress: SnapshotProgress) async throws(ImageError) -> Bool
}

extension SnapshotChange {
  package var changesImage: Bool { true }

  package init(_ arguments: inout JobArguments) throws(JobError) {
    self.init(try SnapshotTarget.selector(&arguments))
  }

  package var arguments: JSONValue { SnapshotTarget.arguments(snapshot) }

  package func run(
    on disk: any OpenDisk, _ context: JobContext<NoValue>
  ) async throws(JobError) -> NoValue {
    try await context.checkpoint()
    let engine = try SnapshotTarget.engine(of: disk)
    let isDone: Bool
    do throws(ImageError) {
      isDone = try await change(engine, SnapshotTarget.progress(context))
    } catch { throw .image(error) }
    if !isDone { throw .cancelled }
    return NoValue()
  }
}
