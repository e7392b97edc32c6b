import BlockCore
import CPlatform

/// The threads that a check may use: how many, and how they are started.
package struct CheckThreads: Sendable {
  /// At least 1.
  package let count: Int
  private let start: @Sendable (Int, @escaping @Sendable (Int) -> Void) -> Void

  /// - Parameters:
  ///   - count: The most threads.
  ///   - start: Calls its second argument on up to so many threads, the caller's among them, each with a
  ///     number of its own below `count`, and returns when all calls have. One call is enough.
  package init(
    _ count: Int, _ start: @escaping @Sendable (Int, @escaping @Sendable (Int) -> Void) -> Void
  ) {
    self.count = max(count, 1)
    self.start = start
  }

  /// The caller's thread alone.
  package static let one = CheckThreads(1) { (_, body) in body(0) }

  /// Calls `body` on as many threads as have work, if there is any.
  func run(forRuns runs: Int, _ body: @escaping @Sendable (Int) -> Void) {
    if runs > 0 { start(min(count, runs), body) }
  }
}

/// Takes a value to another thread.
struct Unchecked<Value>: @unchecked Sendable {  // why: each place that makes one gives its reason
  let value: Value
  init(_ value: Value) { self.value = value }
}

/// Numbered runs of work, handed out to threads in their order, which also end in it if they have anything
/// to tell.
@safe
final class OrderedRuns: @unchecked Sendable {  // why: `lock` guards all mutable state
  private let lock = FutexLock(.leaf)
  let count: Int
  private var next = 0
  /// The first run that has not ended, and those after it that have.
  private var turn = 0
  private var ended: Set<Int> = []
  private var failure: (run: Int, error: ToolError)?
  private var sleepers = 0
  /// Counts changes of `turn` and `failure`; the futex word.
  private let changes: UnsafeMutablePointer<UInt32>

  init(count: Int) {
    self.count = count
    unsafe changes = .allocate(capacity: 1)
    unsafe changes.initialize(to: 0)
  }

  deinit { unsafe changes.deallocate() }

  /// Carries runs out until there is none left, or one has failed.
  ///
  /// - Parameters:
  ///   - findings: Those of the calling thread.
  ///   - body: Carries a run out.
  func carryOut(_ findings: FindingsInOrder, _ body: (Int) throws(ToolError) -> Void) {
    while let run = take() {
      findings.begin(run)
      do throws(ToolError) {
        try body(run)
        findings.tellAll()
        end(run)
      } catch { fail(run, error) }
    }
  }

  /// - Throws: The error of the first run that failed, whichever failed first.
  func end() throws(ToolError) {
    if let failure { throw failure.error }
  }

  private func take() -> Int? {
    lock.withLock {
      guard failure == nil, next < count else { return nil }
      next += 1
      return next - 1
    }
  }

  private func end(_ run: Int) {
    change {
      ended.insert(run)
      while ended.remove(turn) != nil { turn += 1 }
    }
  }

  private func fail(_ run: Int, _ error: ToolError) {
    change {
      if let failure, failure.run < run { return }
      failure = (run, error)
    }
  }

  private func change(_ body: () -> Void) {
    let mustWake = lock.withLock {
      body()
      unsafe changes.pointee &+= 1  // a change counter; wraps by design
      return sleepers > 0
    }
    if mustWake { unsafe qublk_futex_wake(changes, Int32.max) }
  }

  /// Sleeps until all runs before have ended.
  ///
  /// - Returns: false if one of them has failed: nothing is told after that.
  func waitForTurn(_ run: Int) -> Bool {
    while true {
      let (isTurn, isLost, seen) = lock.withLock {
        let isLost = failure.map { $0.run < run } ?? false
        if turn != run, !isLost { sleepers += 1 }
        return unsafe (turn == run, isLost, changes.pointee)
      }
      if isLost { return false }
      if isTurn { return true }
      unsafe qublk_futex_wait(changes, seen)
      lock.withLock { sleepers -= 1 }
    }
  }
}

/// The findings of one thread, told in the order of the runs.
final class FindingsInOrder {
  /// More are told before the run has ended, when its turn has come: memory is bounded.
  private static let most = 1 << 12

  private let runs: OrderedRuns
  private let check: ImageCheck
  private var run = 0
  private var kept: [CheckFinding] = []

  init(_ runs: OrderedRuns, _ check: ImageCheck) {
    self.runs = runs
    self.check = check
  }

  func begin(_ run: Int) {
    self.run = run
    kept.removeAll(keepingCapacity: true)
  }

  func add(_ finding: CheckFinding) {
    kept.append(finding)
    if kept.count >= Self.most { tellAll() }
  }

  /// Tells what there is, once all runs before have told theirs.
  func tellAll() {
    if kept.isEmpty { return }
    if runs.waitForTurn(run) { for finding in kept { check.found(finding) } }
    kept.removeAll(keepingCapacity: true)
  }
}
