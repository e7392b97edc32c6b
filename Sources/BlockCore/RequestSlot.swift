/// Where a request is while it is in flight: one of the slots of a worker, which no other request has.
public struct RequestSlot: Hashable, Sendable {
  /// From 0 to the count given when the target was made, less one; above are those of jobs.
  public let worker: Int
  /// Below the slots per worker: the tag.
  public let number: Int

  @inlinable public init(worker: Int, number: Int) {
    self.worker = worker
    self.number = number
  }
}
