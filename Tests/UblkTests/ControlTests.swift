import BlockCore
import CPlatform
import Glibc
import Testing
import Uring

@testable import Ublk

@Suite struct ControlTests {
  @Test func `a command that is never answered costs its deadline and no more`() throws {
    let request = CommandRequest(.startDevice, device: 0)
    let start = MonotonicClock.milliseconds()
    #expect(request.wait(milliseconds: 30) == nil)
    let waited = MonotonicClock.milliseconds() - start
    #expect(waited >= 30 && waited < 10_000)
    request.complete(-5)
    #expect(request.wait(milliseconds: 0) == -5)
  }

  @Test func `an answer from another thread ends the wait`() throws {
    let request = CommandRequest(.startDevice, device: 0)
    let thread = try WorkerThread(name: "answer") {
      usleep(20_000)
      request.complete(7)
    }
    #expect(request.wait(milliseconds: 60_000) == 7)
    thread.join()
  }

  @Test func `a missing control device is said to be missing`() {
    // The build machine's kernel has no ublk; where it has, the device opens and nothing is made.
    do throws(UblkError) { _ = try ControlDevice() } catch {
      guard case .noControlDevice = error else {
        Issue.record("unexpected \(error)")
        return
      }
    }
  }
}
