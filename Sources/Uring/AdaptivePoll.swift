/// For how long a loop looks for completions before it sleeps.
///
/// A sleep and the wake-up after it take microseconds. A poll pays off only if it finds a completion, so
/// the window follows the last waits: it opens in steps while waits are shorter than the limit, and closes
/// at the first longer one, as on an idle device. Polls that find nothing back off. On a shared processor,
/// polling would starve the very processes whose requests the loop waits for.
struct AdaptivePoll {
  /// The first window.
  private static let firstWindow: UInt64 = 4000
  private static let longestRest = 1024

  /// The most nanoseconds to look for; 0 for never.
  let limit: UInt64
  /// The nanoseconds to look for before the next sleep; 0 for none.
  private(set) var window: UInt64 = 0
  /// The number of short waits to sleep through before the window opens again.
  private var rest = 0
  /// The last value that `rest` began with; it doubles each time.
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
