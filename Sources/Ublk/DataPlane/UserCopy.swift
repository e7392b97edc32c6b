package import BlockCore
import CUblk
import Glibc

/// Copies between a request's own pages and memory, through the character device.
///
/// Blocks for no longer than the copy takes. Only for the worker that serves the request, and only
/// until the request is committed.
package struct UserCopy: Sendable {
  package let characterDevice: Int32
  package let queue: Int

  package init(characterDevice: Int32, queue: Int) {
    self.characterDevice = characterDevice
    self.queue = queue
  }

  /// Where byte `offset` of the request in `tag` is found in the character device.
  package func position(tag: Int, offset: Int) -> UInt64 {
    UBLK_IO_BUFFER_OFFSET
      + (UInt64(queue) << UInt64(UBLK_IO_BUFFER_BITS + UBLK_TAG_BITS)
        | UInt64(tag) << UInt64(UBLK_IO_BUFFER_BITS) | UInt64(offset))
  }

  /// Fills `memory` with the data of a write, from byte `offset` of the request on.
  package func load(
    tag: Int, offset: Int = 0, into memory: UnsafeMutableRawPointer, count: Int
  ) throws(Errno) {
    let start = off_t(position(tag: tag, offset: offset))
    try whole(count) { unsafe pread(characterDevice, memory + $0, count - $0, start + off_t($0)) }
  }

  /// Hands `memory` to a read, from byte `offset` of the request on.
  package func store(
    tag: Int, offset: Int = 0, from memory: UnsafeRawPointer, count: Int
  ) throws(Errno) {
    let start = off_t(position(tag: tag, offset: offset))
    try whole(count) { unsafe pwrite(characterDevice, memory + $0, count - $0, start + off_t($0)) }
  }

  private func whole(_ count: Int, _ copy: (_ done: Int) -> Int) throws(Errno) {
    var done = 0
    while done < count {
      let result = copy(done)
      if result > 0 {
        done += result
      } else if result == 0 {
        throw .io
      } else if errno != EINTR {
        throw Errno(errno)
      }
    }
  }
}
