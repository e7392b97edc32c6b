public import BlockCore
import CPlatform
import Glibc

/// A joinable POSIX thread that runs a closure.
public final class WorkerThread: @unchecked Sendable {
  // why: `handle` is written once, before anyone else sees the object; join is called by the owner.
  private var handle = pthread_t()

  /// Starts the thread.
  ///
  /// - Parameters:
  ///   - name: At most 15 bytes, as tools show it.
  ///   - stackBytes: The stack's size.
  ///   - body: What the thread does; it ends when this returns.
  /// - Throws: The errno of pthread_create(3).
  public init(
    name: String, stackBytes: Int = 1 << 20, _ body: @escaping @Sendable () -> Void
  ) throws(Errno) {
    var attributes = pthread_attr_t()
    unsafe pthread_attr_init(&attributes)
    defer { unsafe pthread_attr_destroy(&attributes) }
    unsafe pthread_attr_setstacksize(&attributes, stackBytes)
    let start = unsafe Unmanaged.passRetained(ThreadStart(name, body))
    let code = unsafe pthread_create(
      &handle, &attributes,
      { argument in
        guard let argument = unsafe argument else { return nil }
        let start = unsafe Unmanaged<ThreadStart>.fromOpaque(argument).takeRetainedValue()
        unsafe qublk_name_thread(start.name)
        start.body()
        return nil
      }, unsafe start.toOpaque())
    if code != 0 {
      unsafe start.release()
      throw Errno(code)
    }
  }

  /// Waits for the thread's end; once at most.
  public func join() { pthread_join(handle, nil) }

  /// Lets the thread go its own way, instead of ``join()``.
  public func detach() { pthread_detach(handle) }
}

private final class ThreadStart {
  let name: String
  let body: @Sendable () -> Void

  init(_ name: String, _ body: @escaping @Sendable () -> Void) {
    self.name = name
    self.body = body
  }
}
