/// What a job tells while it runs; in this order, all of it.
package enum JobMessage: Equatable, Sendable {
  /// Something about the image that is not as it should be, in a line: for standard error.
  case note(String)
  /// A part of the answer for people, with its line breaks: for standard output.
  case output(String)
}

/// What a running job tells its client, and hears from it.
package struct JobContext<Item: JobValue>: Sendable {
  /// How far the job has come.
  package let progress: JobProgress
  /// Whether it is still wanted.
  package let cancellation: JobCancellation
  /// How fast it may be.
  package let rate: RateLimit
  /// Hands a message on, at once.
  package let tell: @Sendable (JobMessage) -> Void
  /// The device that shows the disk; nil if none does.
  package var capacity: (any DeviceCapacity)?
  private let take: @Sendable (Item) async throws(JobError) -> Void

  /// A way.
  ///
  /// - Parameters:
  ///   - progress: Where the job notes how far it has come.
  ///   - cancellation: Where it looks whether it is wanted.
  ///   - rate: How fast it may be.
  ///   - tell: Takes messages; does not wait.
  ///   - take: Takes items; may wait for a reader that is slow.
  package init(
    progress: JobProgress = JobProgress(), cancellation: JobCancellation = JobCancellation(),
    rate: RateLimit = RateLimit(), tell: @escaping @Sendable (JobMessage) -> Void = { _ in },
    take: @escaping @Sendable (Item) async throws(JobError) -> Void = { _ in }
  ) {
    self.progress = progress
    self.cancellation = cancellation
    self.rate = rate
    self.tell = tell
    self.take = take
  }

  /// Hands out an item; returns when there is room for the next.
  package func emit(_ item: Item) async throws(JobError) { try await take(item) }

  /// A safe point of the job, after it has read or written so many bytes.
  ///
  /// Waits as the rate limit asks for. Hold no mutex of the engine here.
  ///
  /// - Throws: ``JobError/cancelled``.
  package func checkpoint(_ bytes: UInt64 = 0) async throws(JobError) {
    try cancellation.check()
    try await rate.wait(afterBytes: bytes, cancellation)
  }
}
