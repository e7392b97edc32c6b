package import BlockCore

/// A worker number that one job has to itself; see ``JobSlots``.
package struct JobSlot: Sendable {
  /// What requests and allocations of the job are called with.
  package let worker: Int
  /// For what has one request at a time.
  package var slot: RequestSlot { RequestSlot(worker: worker, number: 0) }
}

/// Worker numbers for what runs beside the guest's requests.
///
/// A worker number stands for an arena of host clusters, for request slots with their stamps, and for
/// the memory that transforms data. No two jobs share a number, so each rule that holds for a queue's
/// worker holds for a job, too. The numbers follow those of the workers.
///
/// All tasks of a job run on one thread, as those of a worker do.
final class JobSlots: @unchecked Sendable {  // why: `lock` guards all mutable state
  /// The most jobs at once that an image is ready for.
  static let longCount = 4
  /// The most short operations at once: queries of the mapping, VM state, a new size.
  ///
  /// They have numbers of their own, so they never wait for a job.
  static let shortCount = 2
  /// All numbers beside those of the workers.
  static let count = longCount + shortCount

  private let lock = FutexLock(.leaf)
  private var free: [Int]
  private var waiters = WaitList()

  init(workers: Range<Int>) { free = workers.reversed() }

  /// Takes a number, suspending while all are taken.
  func take() async -> JobSlot {
    while true {
      let (worker, seen) = lock.withLock { (free.popLast(), waiters.version) }
      if let worker { return JobSlot(worker: worker) }
      unsafe await withUnsafeContinuation { continuation in
        let waits = lock.withLock { unsafe waiters.add(continuation, ifStill: seen) }
        if !waits { unsafe continuation.resume() }
      }
    }
  }

  /// Gives a number back; nothing of its job may be in flight.
  func giveBack(_ slot: JobSlot) {
    let woken = unsafe lock.withLock {
      assert(!free.contains(slot.worker), "a job's number is given back twice")
      free.append(slot.worker)
      return unsafe waiters.takeAll()
    }
    unsafe woken.forEach { unsafe $0.resume() }
  }
}

extension Image {
  /// Runs a job beside the guest's requests, with a worker number of its own; waits while
  /// ``JobSlots/longCount`` others run.
  ///
  /// The job's requests go to ``serve(_:at:)`` with that number. Its clusters that were
  /// reserved and not used go back when it ends.
  package func withJobSlot<R, E: Error>(
    _ body: (JobSlot) async throws(E) -> R
  ) async throws(E) -> R {
    let slot = await longJobs.take()
    do throws(E) {
      let result = try await body(slot)
      await end(slot)
      return result
    } catch {
      await end(slot)
      throw error
    }
  }

  /// A failure leaves the clusters in the arena, for the next job with that number.
  private func end(_ slot: JobSlot) async {
    assert(stamps.isIdle(worker: slot.worker), "a job ends with a request in flight")
    if (try? await supply.arenas.giveBack(worker: slot.worker)) ?? true { durability.noteDirty() }
    longJobs.giveBack(slot)
  }

  /// The same for a short operation, which leaves its arena as it is.
  func withShortSlot<R>(
    _ body: (JobSlot) async throws(ImageError) -> R
  ) async throws(ImageError) -> R {
    let slot = await shortJobs.take()
    defer {
      assert(stamps.isIdle(worker: slot.worker), "an operation ends with a request in flight")
      shortJobs.giveBack(slot)
    }
    return try await body(slot)
  }
}
