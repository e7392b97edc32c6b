public import BlockCore

/// Where the requests of a ``RequestDriver`` come from and where their results go; it also moves their
/// data to and from the host files.
///
/// The data plane, `qublk bench`, `qublk io` and the tests each are one. All members are called on the
/// worker's thread.
public protocol RequestSource: AnyObject, Sendable {
  /// Nanoseconds of the worker's turn, from which latencies are made.
  var now: UInt64 { get }

  /// Brings ``now`` up to date, after work that took longer than a turn.
  func readClock()

  /// Starts one host transfer, and tells its end by ``RequestDriver/transferred(_:part:result:for:)``.
  ///
  /// - Parameters:
  ///   - transfer: What to do. ``HostTransfer/Kind/zeroes`` comes here for registered buffers only.
  ///   - data: The bytes that it reads into or writes from.
  ///   - isRead: Whether it reads the host file.
  ///   - slot: The request's, to be handed back.
  ///   - part: Its place in the plan, to be handed back.
  func submit(_ transfer: HostTransfer, _ data: DataBuffer, isRead: Bool, slot: Int, part: Int)

  /// Carries out a request whole, which is usually the target's `serve`; the errno if that failed.
  func serve(_ request: BlockRequest, slot: Int) async -> Errno?

  /// The request in `slot` has ended: in full if `failure` is 0, else with that errno.
  ///
  /// May start the next request in the slot, and may be called before `start` has returned.
  func ended(_ slot: Int, failure: Int32)

  /// Runs `body` as a task on the worker's thread; the worker lives until it has ended.
  func spawn(_ body: @escaping @Sendable () async -> Void)

  /// Suspends the calling task for so many milliseconds.
  func pause(milliseconds: Int) async
}
