import BlockCore
import Glibc
import HostFiles
import ImageJobs
import Synchronization

/// A line on standard error that says how far a job has come, written over itself.
final class ProgressLine: Sendable {
  /// A job that is over sooner shows nothing on a terminal by itself.
  private static let patience = 0.5  // seconds

  private let isTerminal: Bool
  private let start = MonotonicClock.nanoseconds()
  /// What stands there.
  private let shown = Mutex("")

  /// A line; in a pipe it ends with carriage returns, too, as qemu-img's does.
  init(isTerminal: Bool) { self.isTerminal = isTerminal }

  /// Writes the line anew if it has changed.
  func show(_ now: JobProgress.Snapshot) {
    let seconds = Double(MonotonicClock.nanoseconds() - start) / 1e9
    if seconds < Self.patience || now.total == 0 { return }
    let text = Self.text(now, seconds: seconds)
    shown.withLock { shown in
      if text == shown { return }
      write(text, over: shown)
      shown = text
    }
  }

  /// Ends the line: with all done after success, else it is left as it is.
  func end(_ last: JobProgress.Snapshot?) {
    let seconds = Double(MonotonicClock.nanoseconds() - start) / 1e9
    shown.withLock { shown in
      // A pipe's reader asked for it, and gets the end at least.
      if shown.isEmpty, isTerminal { return }
      if var last {
        last.total = max(last.total, 1)
        last.done = last.total
        write(Self.text(last, seconds: seconds), over: shown)
      }
      _ = writeAll(STDERR_FILENO, "\n")
    }
  }

  private func write(_ text: String, over old: String) {
    let rest = String(repeating: " ", count: max(0, old.utf8.count - text.utf8.count))
    _ = writeAll(STDERR_FILENO, text + rest + "\r")  // nowhere left to complain
  }

  /// One line of its own, for SIGUSR1.
  static func printOnce(_ now: JobProgress.Snapshot) {
    _ = writeAll(STDERR_FILENO, percent(now) + "\n")
  }

  private static func percent(_ now: JobProgress.Snapshot) -> String {
    let hundredths = Int(now.fraction * 10000)
    let digits = String(hundredths % 100)
    return "    (\(hundredths / 100).\(digits.count < 2 ? "0" : "")\(digits)/100%)"
  }

  /// The share that is done; rate and time left once they can be told.
  static func text(_ now: JobProgress.Snapshot, seconds: Double) -> String {
    var text = percent(now)
    guard seconds >= 1, now.done > 0, now.done < now.total else { return text }
    let rate = Double(now.done) / seconds
    if now.unit == .bytes { text += "  \(Int(rate / 1048576)) MiB/s" }
    let left = Int(Double(now.total - now.done) / rate)
    let (hours, minutes) = (left / 3600, left / 60 % 60)
    let time =
      hours > 0 ? "\(hours) h \(minutes) min" : minutes > 0 ? "\(minutes) min" : "\(left) s"
    return text + "  \(time) left"
  }
}
