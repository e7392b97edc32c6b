import Testing

@testable import QCOW2Engine

/// Which request is the oldest in flight, and which cleared pointers it may have seen.
@Suite struct RequestStampsTests {
  @Test("Each slot of each worker counts, and only its own end ends it")
  func eachSlotCounts() {
    let (workers, slots) = (3, 4)
    let stamps = RequestStamps(workers: workers, slotsPerWorker: slots)
    #expect(stamps.oldest() == .max)
    for worker in 0..<workers {
      for slot in 0..<slots {
        stamps.enter(worker: worker, slot: slot)
        #expect(stamps.oldest() != .max, "\(worker)/\(slot) is not seen")
        for other in 0..<(workers * slots) where other != worker * slots + slot {
          stamps.exit(worker: other / slots, slot: other % slots)
        }
        #expect(stamps.oldest() != .max, "\(worker)/\(slot) was ended by another")
        stamps.exit(worker: worker, slot: slot)
        #expect(stamps.oldest() == .max, "\(worker)/\(slot) goes on")
      }
    }
  }

  @Test("A request holds back what was let go after it began, and nothing let go before")
  func theClockTellsBeforeFromAfter() {
    let stamps = RequestStamps(workers: 2, slotsPerWorker: 1)
    let before = stamps.advance()
    stamps.enter(worker: 0, slot: 0)
    let between = stamps.advance()
    stamps.enter(worker: 1, slot: 0)
    let after = stamps.advance()
    // What has a stamp below the oldest may be used anew: see ``DeferredFrees/takeMature(before:)``.
    #expect(before < stamps.oldest() && between >= stamps.oldest())
    stamps.exit(worker: 0, slot: 0)
    #expect(between < stamps.oldest() && after >= stamps.oldest())
    stamps.exit(worker: 1, slot: 0)
    #expect(after < stamps.oldest())
  }
}
