package import BlockCore
import Glibc

/// Collects the events of one disk: of each kind how often, the first and the last.
///
/// Reporting never waits for the reader. The lock is held for a few stores and never while memory is
/// allocated: a reader that waits for memory, perhaps for memory that is to be written back to this
/// very disk, holds up no worker.
package final class ImageEvents: @unchecked Sendable {  // why: `lock` guards `records`
  /// What there is of one kind.
  package struct Record: Sendable, Equatable {
    package var count: UInt64 = 0
    package var first: ImageEvent?
    package var last: ImageEvent?
    /// In seconds since 1970.
    package var firstTime: Int64 = 0
    package var lastTime: Int64 = 0

    package init() {}
  }

  /// All kinds at one moment.
  package struct Summary: Sendable, Equatable {
    /// By ``ImageEvent/Kind``'s raw value.
    package var records = Array(repeating: Record(), count: ImageEvent.Kind.allCases.count)
    /// The host lacks space now, as far as requests have shown.
    package var lacksSpace = false
    /// How often it began to.
    package var spaceEpisodes: UInt64 = 0

    package init() {}

    package subscript(kind: ImageEvent.Kind) -> Record {
      get { records[kind.rawValue] }
      set { records[kind.rawValue] = newValue }
    }
  }

  private let lock = FutexLock(.leaf)
  private var summaryNow = Summary()
  private let wake: @Sendable () -> Void

  /// - Parameter wake: Tells the reader that there is news; called on the thread that reports, and
  ///   must not wait.
  package init(wake: @escaping @Sendable () -> Void = {}) { self.wake = wake }

  /// Counts an event; any thread may, at any time, with no lock held.
  package func report(_ event: ImageEvent) {
    let time = Int64(time(nil))
    lock.withLock {
      summaryNow.records[event.kind.rawValue].note(event, at: time)
      switch event.kind {
      case .spaceLacking:
        if !summaryNow.lacksSpace { summaryNow.spaceEpisodes &+= 1 }
        summaryNow.lacksSpace = true
      case .spaceFound: summaryNow.lacksSpace = false
      default: break
      }
    }
    wake()
  }

  /// Everything until now.
  package var summary: Summary {
    // Room first: copying the records one by one shares no storage with the reporter, whose next store
    // would otherwise have to allocate.
    var copy = Summary()
    lock.withLock {
      for index in copy.records.indices { copy.records[index] = summaryNow.records[index] }
      copy.lacksSpace = summaryNow.lacksSpace
      copy.spaceEpisodes = summaryNow.spaceEpisodes
    }
    return copy
  }
}

extension ImageEvents.Record {
  fileprivate mutating func note(_ event: ImageEvent, at time: Int64) {
    count &+= 1
    if first == nil {
      first = event
      firstTime = time
    }
    last = event
    lastTime = time
  }
}

/// How an image, or a raw file, reports: the collector, and what its files are called.
package final class EventReporter: Sendable {
  private let events: ImageEvents
  private let object: HostObject
  private let dataFile: HostObject

  /// - Parameters:
  ///   - events: The collector of the disk.
  ///   - object: The file.
  ///   - dataFile: The path of its external data file, if it has one.
  package init(_ events: ImageEvents, _ object: HostObject, dataFile: String? = nil) {
    self.events = events
    self.object = object
    self.dataFile = dataFile.map { HostObject(.dataFile, path: $0) } ?? object
  }

  /// Reports a transfer or barrier that failed.
  ///
  /// A lack of space is not reported here: the request reports it, once nothing can be freed for it.
  package func note(
    _ operation: HostOperation, at offset: HostOffset, length: UInt64, _ errno: Errno,
    inDataFile: Bool = false
  ) {
    if errno.forGuest == .noSpace && operation != .sync { return }
    events.report(
      ImageEvent(
        operation, inDataFile ? dataFile : object, offset: offset, length: length, errno))
  }

  /// Reports something about the file itself.
  package func note(_ kind: ImageEvent.Kind, _ change: (inout ImageEvent) -> Void = { _ in }) {
    var event = ImageEvent(kind, object)
    change(&event)
    events.report(event)
  }
}
