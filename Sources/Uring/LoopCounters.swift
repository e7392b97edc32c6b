public import BlockCore

/// What one loop has done since its start; written by its thread, read by anyone.
public final class LoopCounters: Sendable {
  /// Calls of io_uring_enter(2).
  public let enters = Counter()
  /// Turns: each one submits, waits if there is nothing to do, and reaps.
  public let turns = Counter()
  /// Looks for completions before a sleep, see ``AdaptivePoll``, that saved the sleep.
  public let pollsFound = Counter()
  /// Those that did not.
  public let pollsMissed = Counter()
  /// The time that both have taken.
  public let pollNanoseconds = Counter()
  /// Asynchronous operations (``WorkerLoop/perform(_:)``): reads, registered buffers' zeros among them.
  public let reads = Counter()
  public let writes = Counter()
  /// fdatasync(2).
  public let syncs = Counter()
  /// fallocate(2) and ftruncate(2).
  public let allocations = Counter()

  public init() {}

  func note(_ entry: SubmissionEntry) {
    switch Opcode(rawValue: entry.opcode) {
    case .read, .readFixed: reads.add()
    case .write, .writeFixed: writes.add()
    case .fsync: syncs.add()
    case .fallocate, .ftruncate: allocations.add()
    default: break
    }
  }
}
