import DiskImages
import JSON
import QCOW2Engine

/// What the jobs on internal snapshots have in common.
enum SnapshotTarget {
  /// The engine of a disk that can have snapshots.
  static func engine(of disk: any OpenDisk) throws(JobError) -> Image {
    guard let disk = disk as? DiskImage else { throw .format(needed: .qcow2) }
    return disk.engine
  }

  /// Notes steps, and says whether the job is still wanted.
  static func progress(_ context: JobContext<NoValue>) -> SnapshotProgress {
    { done, total in
      if done <= 1 || context.progress.snapshot.total != total {
        context.progress.begin(total, .steps)
      }
      context.progress.reach(done)
      return !context.cancellation.isCancelled
    }
  }

  /// Takes the words that say which snapshot is meant.
  static func selector(_ arguments: inout JobArguments) throws(JobError) -> SnapshotSelector {
    let id = try arguments.string("id")
    let name = try arguments.string("name")
    let either = try arguments.string("snapshot")
    switch (either, id, name) {
    case (let either?, nil, nil): return .idOrName(either)
    case (nil, let id?, nil): return .id(id)
    case (nil, nil, let name?): return .name(name)
    case (nil, let id?, let name?): return .exact(id: id, name: name)
    default:
      throw .arguments(
        "expected \"snapshot\" (an ID or a name), or \"id\", or \"name\", or the last two")
    }
  }

  /// The same words.
  static func arguments(_ selector: SnapshotSelector) -> JSONValue {
    switch selector {
    case .idOrName(let text): .object([.init("snapshot", .string(text))])
    case .id(let id): .object([.init("id", .string(id))])
    case .name(let name): .object([.init("name", .string(name))])
    case .exact(let id, let name):
      .object([.init("id", .string(id)), .init("name", .string(name))])
    }
  }
}
