import BlockCore
import CUblk
import Uring

/// The two commands of the data plane.
///
/// Source: Linux Documentation/block/ublk.rst; drivers/block/ublk_drv.c, `__ublk_complete_rq`.
extension QueueWorker {
  /// Offers `tag` to the driver for its first request.
  func fetch(_ tag: Int) { send(UBLK_IO_FETCH, tag, result: 0) }

  /// Hands `result` and the tag to the driver; its descriptor and buffer are not ours any more.
  func commit(_ tag: Int, result: Int32) {
    if setup.usesBatches { return commitLater(tag, result: result) }
    unsafe tags[tag].result = result
    send(UBLK_IO_COMMIT_AND_FETCH, tag, result: result)
  }

  /// Sends the last result of `tag` once more.
  func commitAgain(_ tag: Int) {
    unsafe send(UBLK_IO_COMMIT_AND_FETCH, tag, result: tags[tag].result)
  }

  private func send(_ opcode: UInt32, _ tag: Int, result: Int32) {
    unsafe tags[tag].phase = .fetching
    let head =
      UInt64(UInt16(setup.queue)) | UInt64(UInt16(tag)) << 16
      | UInt64(UInt32(bitPattern: result)) << 32
    var buffer: UInt64 = 0
    var registration: UInt64 = 0
    if setup.usesZeroCopy {
      registration = UInt64(tag) | UInt64(UBLK_AUTO_BUF_REG_FALLBACK) << 16
    } else {
      buffer = unsafe UInt64(UInt(bitPattern: memory.buffers + tag * memory.bufferBytes))
    }
    var entry = SubmissionEntry.command(
      opcode, Self.characterSlot, payload: (head, buffer), address: registration)
    entry.opcode = setup.commandOpcode.rawValue
    entry.userData = UserData(.fetch, slot: tag).word
    loop.ring.push(entry)
  }
}
