import BlockCore
import Glibc
import Uring

/// The lines of standard input, read on the ring so that requests go on while there are none.
final class IOLines: @unchecked Sendable {  // why: confined to its loop's thread
  /// The most bytes of one line.
  static let limit = 1 << 16

  private let loop: WorkerLoop
  private let isTerminal = isatty(STDIN_FILENO) == 1
  private let buffer = IOBuffer(count: 1 << 12)
  private var pending: [UInt8] = []
  private var hasEnded = false

  init(_ loop: WorkerLoop) { self.loop = loop }

  /// The next line without its end; nil at the end of the input.
  ///
  /// - Throws: ``IOFailure/lineTooLong``; the line is then skipped.
  func next() async throws(IOFailure) -> String? {
    if isTerminal { IOOutput.write("qemu-io> ") }
    var isSkipping = false
    var searched = 0
    while true {
      if let end = pending[searched...].firstIndex(of: UInt8(ascii: "\n")) {
        let line = String(decoding: pending[..<end], as: UTF8.self)
        pending.removeFirst(end + 1)
        if isSkipping || end > Self.limit { throw .lineTooLong }
        return line
      }
      if pending.count > Self.limit {
        isSkipping = true
        pending.removeAll()
      }
      searched = pending.count
      if await !readMore() { return try last(isSkipping) }
    }
  }

  private func last(_ isSkipping: Bool) throws(IOFailure) -> String? {
    let line = String(decoding: pending, as: UTF8.self)
    pending.removeAll()
    if isSkipping { throw .lineTooLong }
    if !line.isEmpty { return line }
    if isTerminal { IOOutput.write("\n") }
    return nil
  }

  /// - Returns: false at the end of the input.
  private func readMore() async -> Bool {
    while !hasEnded {
      // An offset of all ones is where the file's own position is.
      let count = await loop.perform(
        .read(.descriptor(STDIN_FILENO), into: buffer.data, at: UInt64.max))
      if count == -Errno.interrupted.code || count == -Errno.again.code { continue }
      guard count <= 0 else {
        let bytes = unsafe UnsafeRawBufferPointer(start: buffer.base, count: Int(count))
        unsafe pending.append(contentsOf: bytes)
        return true
      }
      hasEnded = true
    }
    return false
  }
}
