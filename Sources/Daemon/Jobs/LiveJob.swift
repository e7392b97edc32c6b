import BlockCore
import ImageJobs
import JSON
import Synchronization

/// A job on the image of a running device, between its own thread and the client that asked for it.
final class LiveJob: Sendable {
  /// A job waits while so many items have not been taken.
  private static let room = 1024
  /// The most items of one message.
  private static let itemsInMessage = 256

  /// What was told and not yet taken.
  private struct Outbox {
    var messages: [ControlMessage] = []
    /// Items behind the last message.
    var items: [JSONValue] = []
    var itemCount = 0
    /// The last message, once the job has ended.
    var end: ControlMessage?

    mutating func flushItems() {
      if items.isEmpty { return }
      messages.append(.items(items))
      items = []
    }
  }

  /// Counts from 1.
  let id: Int
  let name: String
  let progress = JobProgress()
  let cancellation = JobCancellation()
  private let start = MonotonicClock.nanoseconds()
  private let outbox = Mutex(Outbox())
  /// Tells the control thread that there is something to take.
  private let ring: @Sendable () -> Void

  init(id: Int, name: String, ring: @escaping @Sendable () -> Void) {
    self.id = id
    self.name = name
    self.ring = ring
  }

  // MARK: The job's side

  /// The job's way to its client.
  func context<Item>(of type: Item.Type) -> JobContext<Item> {
    JobContext(
      progress: progress, cancellation: cancellation, tell: { self.tell($0) },
      take: { (item) async throws(JobError) in try await self.give(item.json) })
  }

  private func tell(_ message: JobMessage) {
    outbox.withLock {
      $0.flushItems()
      $0.messages.append(.told(message))
    }
    ring()
  }

  /// Waits for a client that is slow to take what it has asked for.
  private func give(_ item: JSONValue) async throws(JobError) {
    while outbox.withLock({ $0.itemCount >= Self.room }) {
      try cancellation.check()
      await pauseJob(milliseconds: 10)
    }
    let isFirst = outbox.withLock { outbox in
      outbox.items.append(item)
      outbox.itemCount += 1
      if outbox.items.count == Self.itemsInMessage { outbox.flushItems() }
      return outbox.itemCount == 1
    }
    if isFirst { ring() }
  }

  /// The job has ended; nothing comes after this.
  func end(_ message: ControlMessage) {
    outbox.withLock { $0.end = message }
    ring()
  }

  // MARK: The control thread's side

  /// The job has ended, and its thread ends.
  var hasEnded: Bool { outbox.withLock { $0.end != nil } }

  /// Takes everything that was told.
  ///
  /// - Returns: The messages in their order, and whether the last one ends the job.
  func take() -> (messages: [ControlMessage], isEnd: Bool) {
    outbox.withLock { outbox in
      outbox.flushItems()
      var messages = outbox.messages
      outbox.messages = []
      outbox.itemCount = 0
      if let end = outbox.end { messages.append(end) }
      return (messages, outbox.end != nil)
    }
  }

  /// An object for the list of jobs.
  var json: JSONValue {
    let progress = progress.snapshot
    let seconds = Double(MonotonicClock.nanoseconds() - start) / 1e9
    return .object([
      .init("id", .count(id)), .init("job", .string(name)),
      .init("done", .number(progress.done)), .init("total", .number(progress.total)),
      .init("unit", .string(progress.unit.rawValue)),
      .init("seconds", .decimal(seconds, digits: 3)),
    ])
  }
}
