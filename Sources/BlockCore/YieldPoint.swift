import CPlatform

/// A place where a thread looks at, or changes, what it shares with others, or is about to take a lock.
///
/// In debug builds a test may decide there which thread goes on (see ``Turns``), and so go through the
/// interleavings of two requests one by one. Between two of its points a thread then runs alone. So each
/// access outside of a lock has a point before it. Release builds have nothing of this.
public enum YieldPoint: UInt8, Sendable {
  /// Before a lock is taken.
  case lock
  /// The stamps of requests in flight, and their clock.
  case stamp
  /// The gate's byte, and the slots that a grace period waits for.
  case gate
  /// Entries and marks of the L1 table and the refcount table.
  case table
  /// Where metadata lies.
  case metadata
  /// Sets of clusters that are read without their lock.
  case clusters
  /// How often freed clusters became usable again.
  case generation
  /// Whether clusters are being shared.
  case sharing
  /// The backing file that is mounted.
  case backing
  /// What is asked of the next flush round.
  case flush
  /// Lazy refcounts: the dirty bit and who holds it.
  case lazy
  /// Whether the image may still be written.
  case health
  /// Persistent bitmaps.
  case bitmap
  /// A host file's operation begins, or has ended: for files of tests.
  case file

  /// Lets the test of this thread, if there is one, choose who goes on.
  @inlinable public func pass() {
    #if DEBUG
      unsafe Turns.ofThread?.pass(self)
    #endif
  }
}

#if DEBUG
  /// What decides, for some threads, which of them runs.
  open class Turns: @unchecked Sendable {  // why: subclasses order their threads
    public init() {}

    /// The thread is at a point, and may have to wait there for its next turn.
    open func pass(_ point: YieldPoint) {}

    /// The thread can not go on until another one gives a lock back.
    open func waitForLock() {}

    /// Those of the calling thread.
    @unsafe public static var ofThread: Turns? {
      unsafe qublk_thread_turns().map {
        unsafe Unmanaged<Turns>.fromOpaque($0).takeUnretainedValue()
      }
    }

    /// Makes these the turns of the calling thread for good; whoever calls keeps the object alive as long as the
    /// thread lives.
    public func enterThread() {
      unsafe qublk_set_thread_turns(Unmanaged.passUnretained(self).toOpaque())
    }
  }
#endif
