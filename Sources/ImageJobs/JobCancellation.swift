import Synchronization

/// A client's word that it no longer wants a job.
///
/// The job looks for it at safe points.
package final class JobCancellation: Sendable {
  private let isSet = Atomic(false)

  /// It is wanted.
  package init() {}

  /// The job is not wanted any more; it ends at its next safe point.
  package func cancel() { isSet.store(true, ordering: .relaxed) }

  /// Whether ``cancel()`` was called.
  package var isCancelled: Bool { isSet.load(ordering: .relaxed) }

  /// Ends the job if it is not wanted; call where the image is whole.
  ///
  /// - Throws: ``JobError/cancelled``.
  package func check() throws(JobError) {
    if isCancelled { throw .cancelled }
  }
}
