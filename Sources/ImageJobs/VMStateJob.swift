package import JSON
package import QCOW2Engine

/// A job that moves the VM state of one snapshot to a file, or from one.
package protocol VMStateJob: DiskJob {
  /// Which snapshot; of several the first.
  var snapshot: SnapshotSelector { get }
  /// The path of the file.
  var file: String { get }

  /// The job.
  init(_ snapshot: SnapshotSelector, file: String)
}

extension VMStateJob {
  package init(_ arguments: inout JobArguments) throws(JobError) {
    guard let file = try arguments.string("file") else {
      throw .arguments("argument \"file\" is missing")
    }
    self.init(try SnapshotTarget.selector(&arguments), file: file)
  }

  package var arguments: JSONValue {
    .object((SnapshotTarget.arguments(snapshot).members ?? []) + [.init("file", .string(file))])
  }
}
