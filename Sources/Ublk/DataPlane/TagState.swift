import BlockCore

/// Who has a tag and what is left to do for its request.
@safe
struct TagState {
  /// The owner of the tag's descriptor and buffer.
  enum Phase: UInt8 {
    /// Nobody: not fetched yet, or the driver has given the last fetch back.
    case idle
    /// The driver, until the fetch completes.
    case fetching
    /// The hit path: host transfers are in flight.
    case transferring
    /// The slow path.
    case serving
  }

  var phase = Phase.idle
  /// Host transfers that have not completed.
  var pending: UInt16 = 0
  /// Transfers that were tried again after EAGAIN.
  var retries: UInt16 = 0
  /// The errno of the first transfer that failed; 0 for none.
  var failure: Int32 = 0
  /// Whether the tag's slow-path task has been made.
  var hasTask = false
  /// The registered buffer is missing: data goes through user copy.
  var needsUserCopy = false
  /// What the driver was told last.
  var result: Int32 = 0
  /// When the request arrived, by the loop's clock.
  var arrival: UInt64 = 0
  /// The request, from arrival to commit.
  var request = BlockRequest(.flush)
  /// The tag behind this one in the queue for the slow path.
  var nextWaiting: Int32 = -1
  /// The slow-path task, while it waits for a request, or for its turn.
  var parked: UnsafeContinuation<Bool, Never>?
}
