import TestTools

/// A deterministic, single-threaded world for tasks and their host I/O.
///
/// Jobs of tasks and completions of host operations are the only events. The loop picks the next
/// one in order of arrival, or by a seeded generator, so that every order between suspension points
/// can come up. When nothing is left to do but tasks have not finished, that is a deadlock.
package final class SimulatedHost: TaskExecutor, @unchecked Sendable {  // why: one thread runs all
  /// Why a simulation ended before its tasks did.
  package struct Deadlock: Error, CustomStringConvertible {
    package let description: String
  }

  @safe private struct Pending {
    let label: String
    let continuation: UnsafeContinuation<Void, Never>
  }

  private var jobs: [UnownedJob] = []
  private var operations: [Pending] = []
  private var random: SeededGenerator?
  private var failure: (any Error)?
  private var isFinished = false
  /// What each task says it is doing, for the report of a deadlock.
  package var notes: [String: String] = [:]
  /// Events so far.
  package private(set) var eventCount = 0

  /// - Parameter seed: nil for arrival order.
  package init(seed: UInt64?) { random = seed.map { SeededGenerator(seed: $0) } }

  package func enqueue(_ job: consuming ExecutorJob) { jobs.append(UnownedJob(job)) }

  /// Suspends the caller until the loop picks this operation's completion.
  package func complete(_ label: @autoclosure () -> String) async {
    let label = label()
    await withUnsafeContinuation { continuation in
      operations.append(Pending(label: label, continuation: continuation))
    }
  }

  /// A decision of the world: seeded, or always false in arrival order.
  package func flip() -> Bool { random?.chance(50) ?? false }

  /// A number of the world's choice; 0 in arrival order.
  package func choose(below bound: Int) -> Int { random?.below(bound) ?? 0 }

  /// Runs `body`, and all that it starts, to the end.
  package func run(_ body: @escaping @Sendable () async throws -> Void) throws {
    isFinished = false
    failure = nil
    Task(executorPreference: self) {
      do { try await body() } catch { self.failure = error }
      self.isFinished = true
    }
    while !isFinished || !jobs.isEmpty {
      guard step() else {
        throw Deadlock(description: "no event left after \(eventCount); notes: \(notes)")
      }
    }
    if let failure { throw failure }
  }

  private func step() -> Bool {
    if jobs.isEmpty && operations.isEmpty { return false }
    eventCount += 1
    let takesJob =
      operations.isEmpty || !jobs.isEmpty && (random == nil || random?.chance(60) == true)
    if takesJob {
      let job = jobs.remove(at: choose(below: jobs.count))
      job.runSynchronously(on: asUnownedTaskExecutor())
    } else {
      operations.remove(at: choose(below: operations.count)).continuation.resume()
    }
    return true
  }
}
