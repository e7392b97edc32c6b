public import BlockCore
public import Uring

/// A source whose transfers go through its worker's ring, to files that the ring knows.
public protocol RingSource: RequestSource {
  /// The worker's loop, which hands it the completions of kind `transfer`.
  var loop: WorkerLoop { get }
  /// The slot of the ring's table of files that file 0 of transfers has; the others follow.
  var firstFile: Int32 { get }
  /// What the ring reads zeros from, for registered buffers.
  var zeroFile: RingFile { get }
}

extension RingSource {
  @inlinable public var now: UInt64 { loop.now }

  @inlinable public func readClock() { loop.readClock() }

  @inlinable @inline(__always) public func submit(
    _ transfer: HostTransfer, _ data: DataBuffer, isRead: Bool, slot: Int, part: Int
  ) {
    var entry: SubmissionEntry
    if transfer.kind == .zeroes {
      entry = .read(zeroFile, into: data, at: 0)
    } else {
      let file = RingFile.registered(firstFile &+ Int32(transfer.file))
      entry =
        isRead
        ? .read(file, into: data, at: transfer.hostOffset.bytes)
        : .write(file, from: data, at: transfer.hostOffset.bytes)
    }
    entry.userData = UserData(.transfer, slot: slot, part: part).word
    loop.ring.push(entry)
  }

  public func pause(milliseconds: Int) async {
    await loop.sleep(milliseconds: milliseconds)
  }
}
