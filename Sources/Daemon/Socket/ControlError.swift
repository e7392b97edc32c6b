import ImageJobs
import JSON

/// Why a request was not carried out.
package struct ControlError: Error, Equatable, Sendable {
  /// What programs go by; the raw value is the word of the messages.
  package enum Kind: String, CaseIterable, Sendable {
    /// The request is no message of the protocol.
    case malformed
    /// The client speaks a version of the protocol that the daemon does not.
    case version
    case unknownRequest = "unknown-request"
    case arguments
    /// As many jobs run as the daemon takes.
    case busy
    /// The device is gone: another request had it stopped.
    case gone
    /// Nothing has changed.
    case refused
    /// The device is gone, but something went wrong on the way: data may be lost.
    case failed
    /// The job was cancelled, and has left the image whole.
    case cancelled
    /// The job has failed.
    case job
    /// Of a later daemon: no daemon of this version says it.
    case other
  }

  package var kind: Kind
  /// For people: what failed and why, in one line.
  package var text: String

  init(_ kind: Kind, _ text: String) {
    self.kind = kind
    self.text = text
  }

  /// What became of a job.
  init(_ error: JobError) {
    switch error {
    case .cancelled: self.init(.cancelled, error.message)
    case .arguments: self.init(.arguments, error.message)
    default: self.init(.job, error.message)
    }
  }

  /// The refusal of a version, or of a message without one.
  static func version(_ found: JSONValue?) -> ControlError {
    ControlError(
      .version,
      "version \(found?.line ?? "missing") of the control protocol is not known, expected "
        + "\(ControlRequest.version)")
  }
}
