import BlockCore
import Testing

/// The program's modules are optimised for the tests, and yet have what only debug builds check.
struct AssertionTests {
  @Test func assertionsTrap() async {
    await #expect(processExitsWith: .failure) {
      _ = DataBuffer.none.slice(0, 1)
    }
  }

  @Test func locksAreKeptInOrder() async {
    await #expect(processExitsWith: .failure) {
      let leaf = FutexLock(.leaf)
      let ranges = FutexLock(.inFlight)
      leaf.lock()
      ranges.lock()
    }
  }
}
