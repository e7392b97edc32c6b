import ArgumentParser
import BlockCore
import Glibc
import HostFiles
import ImageJobs
import Synchronization
import Uring

/// Shows the progress of a job that runs on other threads, and takes the signals that are meant for it.
///
/// SIGINT, SIGTERM and SIGHUP cancel the job, which leaves the image whole; another one, a second or more
/// later, ends the process at once. One that comes sooner is the same again: timeout(1) sends two. SIGUSR1 has the progress printed.
final class JobWatch: Sendable {
  private static let interval = 200  // milliseconds
  /// How long a signal counts as the one before, in nanoseconds.
  private static let patience: UInt64 = 1_000_000_000

  private let progress: JobProgress
  private let cancellation: JobCancellation
  private let line: ProgressLine?
  private let hasEnded = Atomic(false)
  /// The signal that cancelled the job; 0 for none.
  private let signal = Atomic<Int32>(0)
  private let thread = Mutex<WorkerThread?>(nil)

  /// Starts to watch, on a thread of its own.
  ///
  /// - Parameters:
  ///   - progress: Where the job notes how far it has come.
  ///   - cancellation: What signals are told to.
  ///   - shows: Progress is shown even if standard error is no terminal.
  ///   - isQuiet: It is not shown.
  init(
    _ progress: JobProgress, _ cancellation: JobCancellation, shows: Bool, isQuiet: Bool
  ) {
    self.progress = progress
    self.cancellation = cancellation
    let isTerminal = isatty(STDERR_FILENO) == 1
    line = !isQuiet && (shows || isTerminal) ? ProgressLine(isTerminal: isTerminal) : nil
    let signals = Self.signals
    unsafe withUnsafePointer(to: signals) {
      _ = unsafe pthread_sigmask(SIG_BLOCK, $0, nil)
    }
    let watcher = try? WorkerThread(name: "qublk-watch", stackBytes: 256 << 10) { self.watch() }
    if watcher == nil {
      // Nobody waits for the signals: they end the process, as they do by themselves.
      unsafe withUnsafePointer(to: signals) { _ = unsafe pthread_sigmask(SIG_UNBLOCK, $0, nil) }
    }
    thread.withLock { $0 = watcher }
  }

  /// The signals that the watching thread waits for; SIGUSR2 wakes it at the end.
  private static var signals: sigset_t {
    var set = sigset_t()
    unsafe sigemptyset(&set)
    for number in [SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2] { unsafe sigaddset(&set, number) }
    return set
  }

  /// Ends the watch; call once, when the job has ended.
  ///
  /// If a signal had the job cancelled, the process ends by that signal.
  func end(succeeded: Bool) throws(ExitCode) {
    hasEnded.store(true, ordering: .releasing)
    let thread = thread.withLock { thread in
      defer { thread = nil }
      return thread
    }
    if let thread {
      kill(getpid(), SIGUSR2)
      thread.join()
    }
    line?.end(succeeded ? progress.snapshot : nil)
    let number = signal.load(ordering: .relaxed)
    if number != 0, !succeeded { Self.die(of: number) }
  }

  private func watch() {
    let signals = Self.signals
    var first: UInt64 = 0
    while !hasEnded.load(ordering: .acquiring) {
      var wait = timespec(tv_sec: 0, tv_nsec: Self.interval * 1_000_000)
      let number = unsafe withUnsafePointer(to: signals) { unsafe sigtimedwait($0, nil, &wait) }
      switch number {
      case SIGINT, SIGTERM, SIGHUP:
        let now = MonotonicClock.nanoseconds()
        if first == 0 { first = now }
        if now - first >= Self.patience { Self.die(of: number) }
        signal.store(number, ordering: .relaxed)
        cancellation.cancel()
      case SIGUSR1: ProgressLine.printOnce(progress.snapshot)
      default: line?.show(progress.snapshot)
      }
    }
  }

  private static func die(of number: Int32) -> Never {
    Glibc.signal(number, SIG_DFL)
    var set = sigset_t()
    unsafe sigemptyset(&set)
    unsafe sigaddset(&set, number)
    _ = unsafe pthread_sigmask(SIG_UNBLOCK, &set, nil)
    kill(getpid(), number)
    // Where the signal is ignored for good.
    exit(128 + number)
  }
}
