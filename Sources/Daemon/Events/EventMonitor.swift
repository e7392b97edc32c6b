import BlockCore
import CPlatform
import Glibc
import Logging
import QCOW2Engine
import Synchronization
import Uring

/// Brings a disk's events to the log and to the state file, on a thread of its own: neither a worker nor
/// the control thread waits for the journal, and an event is told while a command is being answered.
final class EventMonitor: @unchecked Sendable {
  // why: `thread`, `work` and `device` are the control thread's; the thread itself has what it was started with.

  /// Where the disk reports.
  let events: ImageEvents
  private let holdsRequests: Bool
  private let bell: EventBell
  private var thread: WorkerThread?
  private var work: EventWork?
  private var device: DeviceName?

  /// With `holdsRequests`, requests that lack space wait for it.
  init(holdsRequests: Bool) throws(CommandError) {
    let bell = try EventBell()
    self.bell = bell
    self.holdsRequests = holdsRequests
    events = ImageEvents { bell.ring() }
  }

  /// Starts to tell of the events of `device`, those that came before too.
  ///
  /// `state` is what stands in its state file, `directory` the place of that file.
  func start(
    _ device: DeviceName, _ state: DeviceState, in directory: StateDirectory
  ) throws(CommandError) {
    let work = EventWork(
      events, bell, EventLog(device: device, holdsRequests: holdsRequests), state, directory)
    do throws(Errno) {
      thread = try WorkerThread(name: "events", stackBytes: 512 << 10) { work.run() }
    } catch { throw .fork(error) }
    self.work = work
    self.device = device
  }

  /// Tells the rest and ends the thread; before the state file goes.
  func finish() {
    guard let thread else { return }
    self.thread = nil
    bell.end()
    thread.join()
    work?.look(atEnd: true)
  }

  var condition: DeviceCondition { DeviceCondition(events.summary) }

  /// What is wrong, for messages; nil if nothing is.
  var trouble: String? {
    device.flatMap {
      EventLog(device: $0, holdsRequests: holdsRequests).trouble(of: events.summary)
    }
  }
}

/// Wakes the thread that tells of events.
private final class EventBell: Sendable {
  private let descriptor: Int32
  private let isRinging = Atomic<Bool>(false)
  private let isEnding = Atomic<Bool>(false)

  init() throws(CommandError) {
    descriptor = qublk_eventfd()
    if descriptor < 0 { throw .hygiene(.events, Errno(-descriptor)) }
  }

  deinit { close(descriptor) }

  /// One system call for any number of events that nobody has looked at.
  func ring() {
    if isRinging.exchange(true, ordering: .acquiringAndReleasing) { return }
    var one: UInt64 = 1
    _ = unsafe write(descriptor, &one, 8)
  }

  func end() {
    isEnding.store(true, ordering: .releasing)
    var one: UInt64 = 1
    _ = unsafe write(descriptor, &one, 8)
  }

  /// Waits for news; false at the end.
  func wait(milliseconds: Int32) -> Bool {
    var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    if unsafe poll(&entry, 1, milliseconds) > 0 {
      var count: UInt64 = 0
      _ = unsafe read(descriptor, &count, 8)
    }
    isRinging.store(false, ordering: .releasing)
    return !isEnding.load(ordering: .acquiring)
  }
}

/// What the thread does.
private final class EventWork: @unchecked Sendable {
  // why: one thread at a time uses it: the monitor's own, and the one that joins it afterwards.
  private let events: ImageEvents
  private let bell: EventBell
  private var log: EventLog
  private var state: DeviceState
  private let directory: StateDirectory

  init(
    _ events: ImageEvents, _ bell: EventBell, _ log: EventLog, _ state: DeviceState,
    _ directory: StateDirectory
  ) {
    self.events = events
    self.bell = bell
    self.log = log
    self.state = state
    self.directory = directory
  }

  func run() {
    // The log's file may lie on a file system that waits for this device.
    _ = qublk_set_io_flusher(1)
    var isBehind = look(atEnd: false)
    while bell.wait(milliseconds: isBehind ? 1000 : -1) {
      isBehind = look(atEnd: false)
      // Some 20 looks a second, however many events there are.
      usleep(50_000)
    }
  }

  /// Writes the lines that are due, and the state if it has changed.
  ///
  /// - Returns: Whether something is to be told later.
  @discardableResult
  func look(atEnd: Bool) -> Bool {
    let summary = events.summary
    let (lines, isBehind) = log.lines(for: summary, now: Double(MonotonicClock.nanoseconds()) / 1e9)
    for line in lines {
      switch line.level {
      case .error: Log.logger.error("\(line.text)")
      case .warning: Log.logger.warning("\(line.text)")
      case .info: Log.logger.info("\(line.text)")
      }
    }
    if !atEnd { writeState(summary) }
    return isBehind
  }

  private func writeState(_ summary: ImageEvents.Summary) {
    let condition = DeviceCondition(summary)
    let trouble = log.trouble(of: summary)
    // A trouble of the same kind elsewhere is not worth a file for each request.
    if condition == state.condition && (trouble == nil) == (state.trouble == nil) { return }
    state.condition = condition
    state.trouble = trouble
    do throws(CommandError) { try directory.write(state) } catch {
      Log.logger.warning("\(error.text): \"qublk list\" does not show the device's condition")
    }
  }
}
