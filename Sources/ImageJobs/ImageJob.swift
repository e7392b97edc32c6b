package import DiskImages
package import JSON

/// An operation on a whole image, with its parameters.
///
/// Written once. A host runs it: ``OfflineHost`` on an image that a command opens, a daemon on the
/// image that it serves, a session of `qublk io` on its disk. A job knows none of them. What it needs
/// is its ``Subject``, and what it may do meanwhile is in the ``JobContext``.
///
/// A job calls ``JobContext/checkpoint(_:)`` wherever the image is whole, often enough that a
/// person does not wait for a cancellation. A job that fails or is cancelled leaves the image whole:
/// as it was, as it was to become, or so that the same job goes on from there; at worst clusters leak.
package protocol ImageJob: Sendable {
  /// What the job works on: ``ImageFile`` or `any OpenDisk`.
  associatedtype Subject
  /// What it hands out one by one while it runs, for results that may be long.
  associatedtype Item: JobValue = NoValue
  /// What it ends with.
  associatedtype Outcome: JobValue = NoValue

  /// What requests call the job.
  static var name: String { get }
  /// Whether the job changes the image: the hosts' locks follow from it.
  var changesImage: Bool { get }
  /// The path of a file beside the image that the job opens by name; nil if it opens no such file.
  var openedByName: String? { get }
  /// The parameters, as requests carry them: an object.
  var arguments: JSONValue { get }

  /// Reads the parameters of a request.
  ///
  /// - Throws: ``JobError/arguments(_:)``.
  init(_ arguments: inout JobArguments) throws(JobError)

  /// Carries the job out.
  func run(
    on subject: Subject, _ context: JobContext<Item>
  ) async throws(JobError) -> Outcome
}

extension ImageJob {
  /// Most jobs open nothing.
  package var openedByName: String? { nil }
}

/// A job on the bytes of the image file alone; opens nothing that the image names [SEC-1].
package protocol FileJob: ImageJob where Subject == ImageFile {}

/// A job on an open disk, by its engine.
package protocol DiskJob: ImageJob where Subject == any OpenDisk {}

/// A value that a job's host sends to its client.
package protocol JobValue: Equatable, Sendable {
  /// The value as messages carry it.
  var json: JSONValue { get }

  /// Reads ``json``; nil if it is not such a value.
  init?(json: JSONValue)
}

/// Stands for the outcome of a job that has none, and for the items of a job that has none.
package struct NoValue: JobValue {
  /// An empty object.
  package var json: JSONValue { .object([]) }

  /// The value.
  package init() {}

  /// Takes any object.
  package init?(json: JSONValue) {
    if json.members == nil { return nil }
  }
}
