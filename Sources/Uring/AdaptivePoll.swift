/// For how long a loop looks for completions before it sleeps.
///
/// A sleep and the way out of it take microseconds, and a look is worth it only if it ends with a
/// completion. So the window follows what has happened: it opens, in steps, while waits are short enough
/// to be spent looking, and closes at the first that is longer than the limit, as on an idle device. Looks
/// that end with nothing are rarer each time: on a processor that the loop shares with those whose requests
/// it waits for, it keeps them from making any.
struct AdaptivePoll {
  /// The first window.
  private static let firstWindow: UInt64 = 4000
  private static let longestRest = 1024

  /// The most nanoseconds to look for; 0 for never.
  let limit: UInt64
  /// The nanoseconds to look for before the next sleep; 0 for none.
  private(set) var window: UInt64 = 0
  /// Short waits to be slept through before the window opens again.
  private var rest = 0
  /// The last rest: the next one is twice as long.
  private var lastRest = 0

  init(limit: UInt64) { self.limit = limit }

  /// A look has ended with something to do.
  mutating func noteFound() { lastRest = 0 }

  /// A sleep has ended.
  ///
  /// - Parameters:
  ///   - nanoseconds: The whole wait, the look before the sleep included.
  ///   - polled: Whether there was one.
  mutating func noteSleep(_ nanoseconds: UInt64, polled: Bool) {
    if nanoseconds > limit {
      window = 0
      if polled { beginRest() }
    } else if rest > 0 {
      rest -= 1
    } else {
      window = window > limit / 2 ? limit : min(limit, max(window * 2, Self.firstWindow))
    }
  }

  private mutating func beginRest() {
    lastRest = min(max(lastRest * 2, 1), Self.longestRest)
    rest = lastRest
  }
}
