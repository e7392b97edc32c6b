import Glibc
import Testing

@testable import Daemon

@Suite struct StopSignalsTests {
  @Test func `the same signal some time later insists`() {
    var signals = StopSignals()
    #expect(signals.answer(SIGTERM, at: 100) == .stopIfUnused)
    signals.noteInUse(SIGTERM, at: 100)
    #expect(signals.answer(SIGTERM, at: 100.1) == .ignore)
    #expect(signals.answer(SIGTERM, at: 104.9) == .ignore)
    #expect(signals.answer(SIGTERM, at: 105) == .insist)
  }

  @Test(arguments: [SIGHUP, SIGINT])
  func `another signal does not insist, whenever it comes`(_ other: Int32) {
    var signals = StopSignals()
    signals.noteInUse(SIGTERM, at: 100)
    for time in [100, 104, 106, 159.0] { #expect(signals.answer(other, at: time) == .ignore) }
    signals.noteInUse(other, at: 100)
    #expect(signals.answer(SIGTERM, at: 106) == .insist)
  }

  @Test func `process 1 never insists`() {
    var signals = StopSignals()
    #expect(signals.answer(SIGTERM, at: 100, isFromInit: true) == .stopIfUnused)
    signals.noteInUse(SIGTERM, at: 100)
    for time in [101, 107, 159.0] {
      #expect(signals.answer(SIGTERM, at: time, isFromInit: true) == .ignore)
    }
    #expect(signals.answer(SIGTERM, at: 107) == .insist)
  }

  @Test func `a signal of long ago is forgotten`() {
    var signals = StopSignals()
    signals.noteInUse(SIGTERM, at: 100)
    #expect(signals.answer(SIGTERM, at: 160) == .stopIfUnused)
    signals.noteInUse(SIGTERM, at: 160)
    #expect(signals.answer(SIGTERM, at: 164) == .ignore)
    #expect(signals.answer(SIGTERM, at: 165) == .insist)
  }

  @Test func `SIGHUP never makes a device in use leave`() {
    var signals = StopSignals()
    for time in [100, 106, 1000.0] {
      #expect(signals.answer(SIGHUP, at: time) == .stopIfUnused)
      signals.noteInUse(SIGHUP, at: time)
      #expect(signals.leaving == nil)
    }
    #expect(signals.answer(SIGTERM, at: 1001) == .stopIfUnused)
  }
}
