import Glibc
import Synchronization

/// Ends the test run, with the name of the case, when a case takes too long.
final class Watchdog: Sendable {
  static let shared = Watchdog()
  /// Seconds that a case may take: it needs less than one, on a machine of its own.
  private static let limit = 300
  private let current = Mutex<(name: String, since: Int)?>(nil)

  private init() {
    // Never ends: it watches as long as there are tests.
    Thread.detach { [self] in
      while true {
        sleep(1)
        if let late = current.withLock({ $0 }), time(nil) - late.since > Self.limit {
          fatalError("\(late.name) takes more than \(Self.limit) s")
        }
      }
    }
  }

  /// A case starts; cases run one at a time.
  func begin(_ name: String) { current.withLock { $0 = (name, time(nil)) } }

  func end() { current.withLock { $0 = nil } }
}

private enum Thread {
  static func detach(_ body: @escaping @Sendable () -> Void) {
    var handle = pthread_t()
    let box = Unmanaged.passRetained(Box(body))
    pthread_create(
      &handle, nil,
      { argument in
        if let argument { Unmanaged<Box>.fromOpaque(argument).takeRetainedValue().body() }
        return nil
      }, box.toOpaque())
    pthread_detach(handle)
  }

  private final class Box {
    let body: @Sendable () -> Void
    init(_ body: @escaping @Sendable () -> Void) { self.body = body }
  }
}
