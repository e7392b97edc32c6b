import BlockCore
import Uring

/// The asynchronous path: one long-lived task for each tag that ever needed it.
extension QueueWorker {
  /// Hands the request in `tag` to the tag's task, now or when it is its turn.
  ///
  /// - Parameters:
  ///   - tag: The request's.
  ///   - holdsRange: The hit path has begun the request. Others on the slow path may wait for its end, so
  ///     it must not wait for theirs.
  func startServing(_ tag: Int, holdsRange: Bool = false) {
    unsafe setup.counters.noteSlow(tags[tag].request.operation)
    unsafe tags[tag].phase = .serving
    guard holdsRange || turns.isFree else { return unsafe turns.wait(tag, tags) }
    wakeServing(tag)
  }

  private func wakeServing(_ tag: Int) {
    turns.begin()
    if let parked = unsafe tags[tag].parked {
      unsafe tags[tag].parked = nil
      unsafe parked.resume(returning: true)
    } else {
      unsafe assert(!tags[tag].hasTask)
      unsafe tags[tag].hasTask = true
      spawn { [self] in await serveTag(tag) }
    }
  }

  private func serveTag(_ tag: Int) async {
    repeat {
      var failure = await serveRequest(tag)
      if failure == .noSpace, let retry = setup.retryNoSpace {
        var attempt = 0
        while failure == .noSpace, await retryInTurn(tag, retry, attempt) {
          attempt += 1
          failure = await serveRequest(tag)
        }
      }
      loop.readClock()
      commit(tag, outcome: failure?.code ?? 0)
      endTurnOfRequest()
    } while await nextRequest(tag)
    unsafe tags[tag].hasTask = false
  }

  /// Asks `retry` whether to serve a request again, and lets others have their turn while it waits.
  private func retryInTurn(
    _ tag: Int, _ retry: (Int) async -> Bool, _ attempt: Int
  ) async -> Bool {
    endTurnOfRequest()
    let isTriedAgain = await retry(attempt)
    guard !turns.isFree else {
      turns.begin()
      return isTriedAgain
    }
    unsafe turns.wait(tag, tags)
    _ = unsafe await withUnsafeContinuation { unsafe tags[tag].parked = unsafe $0 }
    return isTriedAgain
  }

  /// A request on the slow path has ended: those that wait come next.
  private func endTurnOfRequest() {
    turns.end()
    while let next = unsafe turns.next(tags) { wakeServing(next) }
  }

  /// Parks the tag's task until there is a request; false when the worker ends.
  private func nextRequest(_ tag: Int) async -> Bool {
    if isEnding { return false }
    return unsafe await withUnsafeContinuation { unsafe tags[tag].parked = unsafe $0 }
  }

  private func serveRequest(_ tag: Int) async -> Errno? {
    let request = unsafe tags[tag].request
    let copies =
      unsafe setup.usesZeroCopy && (tags[tag].needsUserCopy || setup.slowPathData == .memory)
    if copies && (request.operation == .read || request.operation == .write) {
      return await serveThroughMemory(tag, request)
    }
    let outcome = await target.serve(request, worker: setup.queue, slot: tag)
    if outcome == .needsMemory { return await serveThroughMemory(tag, request) }
    return outcome.errno
  }

  /// Serves with plain memory in place of the request's own pages.
  private func serveThroughMemory(_ tag: Int, _ request: BlockRequest) async -> Errno? {
    if setup.usesZeroCopy { setup.counters.userCopies.add() }
    let count = Int(request.length)
    // Other tags will need the memory.
    defer { if setup.usesZeroCopy && turns.areLimited { memory.dropBuffer(tag, count) } }
    let buffer = unsafe memory.buffers + tag * memory.bufferBytes
    var request = request
    request.data = memory.buffer(tag, count)
    do throws(Errno) {
      if request.operation == .write {
        try unsafe userCopy.load(tag: tag, into: buffer, count: count)
      }
      if let failure = await target.serve(request, worker: setup.queue, slot: tag).errno {
        return failure
      }
      if request.operation == .read {
        try unsafe userCopy.store(tag: tag, from: buffer, count: count)
      }
      return nil
    } catch { return error }
  }
}
