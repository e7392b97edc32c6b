public import BlockCore

/// What is left to do for the request in a slot.
@safe
public struct RequestState {
  /// The request, from its start to its end.
  @usableFromInline var request = BlockRequest(.flush)
  /// When it began, by ``RequestSource/now``.
  @usableFromInline var arrival: UInt64 = 0
  /// Host transfers that have not completed.
  @usableFromInline var pending: UInt16 = 0
  /// Transfers that were tried again after EAGAIN or EINTR.
  @usableFromInline var retries: UInt16 = 0
  /// The errno of the first transfer that failed; 0 for none.
  @usableFromInline var failure: Int32 = 0
  /// Whether the slot's slow-path task has been made.
  @usableFromInline var hasTask = false
  /// The task ended one request, and its source started the next one before it was parked.
  @usableFromInline var hasWork = false
  /// The slot behind this one in the queue for the slow path.
  @usableFromInline var nextWaiting: Int32 = -1
  /// The slow-path task, while it waits for a request, or for its turn.
  @usableFromInline var parked: UnsafeContinuation<Bool, Never>?

  @usableFromInline init() {}
}
