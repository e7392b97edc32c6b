import Testing

@testable import Uring

@Suite struct AdaptivePollTests {
  private static let limit: UInt64 = 32_000

  private func poll(_ limit: UInt64 = limit) -> AdaptivePoll { AdaptivePoll(limit: limit) }

  @Test func `the window opens in steps while waits are short`() {
    var poll = poll()
    var seen: [UInt64] = [poll.window]
    for _ in 0..<5 {
      poll.noteSleep(20_000, polled: poll.window > 0)
      seen.append(poll.window)
    }
    #expect(seen == [0, 4000, 8000, 16_000, 32_000, 32_000])
  }

  @Test func `what is found leaves the window as it is`() {
    var poll = poll()
    poll.noteSleep(5000, polled: false)
    for _ in 0..<100 { poll.noteFound() }
    #expect(poll.window == 4000)
  }

  @Test func `a wait longer than the limit closes it, and an idle loop keeps it closed`() {
    var poll = poll()
    for _ in 0..<4 { poll.noteSleep(10_000, polled: false) }
    #expect(poll.window == Self.limit)
    poll.noteSleep(Self.limit + 1, polled: true)
    for _ in 0..<100 {
      #expect(poll.window == 0)
      poll.noteSleep(500_000_000, polled: false)
    }
  }

  @Test func `looks that find nothing are rarer each time, until one finds something`() {
    var poll = poll()
    var looks = 0
    // Each look is in vain, and each sleep without one is short: the processor is shared.
    for _ in 0..<10_000 {
      let polls = poll.window > 0
      if polls { looks += 1 }
      poll.noteSleep(10_000 + poll.window * 4, polled: polls)
    }
    #expect(looks > 0 && looks < 200, "\(looks)")
    while poll.window == 0 { poll.noteSleep(10_000, polled: false) }
    poll.noteFound()
    poll.noteSleep(1_000_000, polled: true)
    poll.noteSleep(10_000, polled: false)
    #expect(poll.window == 0)
    poll.noteSleep(10_000, polled: false)
    #expect(poll.window > 0)
  }

  @Test func `the limit is one, however small or large`() {
    for limit: UInt64 in [0, 1, 1000, 5000, 1_000_000, .max] {
      var poll = poll(limit)
      for _ in 0..<100 {
        poll.noteSleep(min(limit, 1000), polled: poll.window > 0)
        #expect(poll.window <= limit)
      }
      if limit > 0 { #expect(poll.window > 0) }
      poll.noteSleep(.max, polled: true)
      if limit < .max { #expect(poll.window == 0) }
    }
  }
}
