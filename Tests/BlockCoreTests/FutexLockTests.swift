import BlockCore
import Testing

@Suite struct FutexLockTests {
  /// A number that only the lock protects.
  private final class Counter: @unchecked Sendable {  // why: `lock` guards `value`
    let lock = FutexLock(.leaf)
    var value = 0
  }

  @Test("Many tasks on all cores never lose an increment")
  func incrementsAreNotLost() async {
    let counter = Counter()
    await withTaskGroup(of: Void.self) { group in
      for _ in 0..<8 {
        group.addTask {
          for _ in 0..<20_000 { counter.lock.withLock { counter.value += 1 } }
        }
      }
    }
    #expect(counter.lock.withLock { counter.value } == 160_000)
  }

  @Test("The lock is free again after an error")
  func anErrorFreesTheLock() throws {
    struct Failure: Error {}
    let lock = FutexLock(.leaf)
    for _ in 0..<3 {
      #expect(throws: Failure.self) { try lock.withLock { throw Failure() } }
    }
  }

  @Test("Locks of rising rank nest")
  func risingRanksNest() {
    let outer = FutexLock(.inFlight)
    let inner = FutexLock(.slice)
    for _ in 0..<2 { #expect(outer.withLock { inner.withLock { 7 } } == 7) }
  }
}
