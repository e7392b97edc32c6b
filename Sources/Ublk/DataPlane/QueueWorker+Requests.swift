import BlockCore
import Serving
import Uring

/// What the worker is to the requests that it carries out: their source.
extension QueueWorker: RingSource {
  var firstFile: Int32 { Self.firstFileSlot }
  var zeroFile: RingFile { Self.zeroSlot }

  /// Completes the request in `tag`: in full, or with the errno `failure` if that is not 0.
  ///
  /// The driver fails a READ of 0 bytes and requeues a WRITE of 0 for ever, so a success always
  /// reports the whole length. Other operations report 0.
  func ended(_ tag: Int, failure: Int32) {
    if failure == 0 {
      let request = requests.request(tag)
      let transfers = request.operation == .read || request.operation == .write
      commit(tag, result: transfers ? Int32(truncatingIfNeeded: request.length) : 0)
    } else {
      // EAGAIN would make the block layer try again by itself, out of our sight.
      commit(tag, result: failure == Errno.again.code ? -Errno.io.code : -failure)
    }
  }

  func serve(_ request: BlockRequest, slot tag: Int) async -> Errno? {
    let copies =
      unsafe setup.usesZeroCopy && (tags[tag].needsUserCopy || setup.slowPathData == .memory)
    if copies && (request.operation == .read || request.operation == .write) {
      return await serveThroughMemory(tag, request)
    }
    let outcome = await requests.target.serve(
      request, at: RequestSlot(worker: setup.queue, number: tag))
    if outcome == .needsMemory { return await serveThroughMemory(tag, request) }
    return outcome.errno
  }

  /// Serves with plain memory in place of the request's own pages.
  private func serveThroughMemory(_ tag: Int, _ request: BlockRequest) async -> Errno? {
    if setup.usesZeroCopy { setup.counters.userCopies.add() }
    let count = Int(request.length)
    // Other tags will need the memory.
    defer { if setup.usesZeroCopy && requests.isLimited { memory.dropBuffer(tag, count) } }
    let buffer = unsafe memory.buffers + tag * memory.bufferBytes
    var request = request
    request.data = memory.buffer(tag, count)
    do throws(Errno) {
      if request.operation == .write {
        try unsafe userCopy.load(tag: tag, into: buffer, count: count)
      }
      let outcome = await requests.target.serve(
        request, at: RequestSlot(worker: setup.queue, number: tag))
      if let failure = outcome.errno { return failure }
      if request.operation == .read {
        try unsafe userCopy.store(tag: tag, from: buffer, count: count)
      }
      return nil
    } catch { return error }
  }
}
