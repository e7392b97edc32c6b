import Synchronization
import Testing
import Uring

@testable import QCOW2Engine

/// Who gets the mutex that tasks hold.
@Suite struct AsyncMutexTests {
  private final class Shared: Sendable {
    let mutex = AsyncMutex()
    let uses = Mutex(0)
    let order = Mutex<[String]>([])
    let inside = Atomic(0)
    let mostInside = Atomic(0)

    func use() async {
      await mutex.acquire()
      let now = inside.wrappingAdd(1, ordering: .relaxed).newValue
      mostInside.max(now, ordering: .relaxed)
      uses.withLock { $0 += 1 }
      inside.wrappingSubtract(1, ordering: .relaxed)
      mutex.release()
    }
  }

  /// A waiter that was woken in vain once comes next, however often others take the mutex.
  @Test func aWaiterIsPassedOverOnce() {
    let shared = Shared()
    runBlocking { () async in
      await shared.mutex.acquire()
      await withTaskGroup(of: Void.self) { group in
        group.addTask {
          await shared.mutex.acquire()
          shared.order.withLock { $0.append("waiter") }
          shared.mutex.release()
        }
        // The waiter waits.
        await Task.yield()
        for _ in 0..<5 {
          shared.mutex.release()
          await shared.mutex.acquire()
          shared.order.withLock { $0.append("owner") }
          await Task.yield()
        }
        shared.mutex.release()
      }
    }
    let order = shared.order.withLock { $0 }
    let place = order.firstIndex(of: "waiter") ?? order.count
    #expect(order.count == 6 && place <= 1, "\(order)")
  }

  /// No waiter is forgotten, and two never have the mutex, on several threads with several tasks.
  @Test func everyWaiterGetsItsTurn() throws {
    let shared = Shared()
    let threads = try (0..<4).map { number in
      try WorkerThread(name: "mutex-\(number)") {
        runBlocking { () async in
          await withTaskGroup(of: Void.self) { group in
            for _ in 0..<8 {
              group.addTask {
                for turn in 0..<200 {
                  await shared.use()
                  if turn % 7 == 0 { await Task.yield() }
                }
              }
            }
          }
        }
      }
    }
    for thread in threads { thread.join() }
    #expect(shared.uses.withLock { $0 } == 4 * 8 * 200)
    #expect(shared.mostInside.load(ordering: .relaxed) == 1)
  }
}
