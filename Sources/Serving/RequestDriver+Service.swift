public import BlockCore

/// The slow path: one long-lived task for each slot that ever needed it.
extension RequestDriver {
  /// Hands the request in `slot` to the slot's task, now or when it is its turn.
  ///
  /// - Parameters:
  ///   - slot: The request's.
  ///   - holdsRange: The hit path has begun the request. Others on the slow path may wait for its end, so
  ///     it must not wait for theirs.
  ///   - source: The request's.
  @inlinable func startServing<Source: RequestSource>(
    _ slot: Int, holdsRange: Bool = false, for source: Source
  ) {
    unsafe counters.noteSlow(states[slot].request.operation)
    guard unsafe holdsRange || turns.pointee.isFree else {
      return unsafe turns.pointee.wait(slot, states)
    }
    wakeServing(slot, source)
  }

  @inlinable func wakeServing<Source: RequestSource>(_ slot: Int, _ source: Source) {
    unsafe turns.pointee.begin()
    if let parked = unsafe states[slot].parked {
      unsafe states[slot].parked = nil
      unsafe parked.resume(returning: true)
    } else if unsafe states[slot].hasTask {
      unsafe assert(!states[slot].hasWork)
      unsafe states[slot].hasWork = true
    } else {
      unsafe states[slot].hasTask = true
      source.spawn { [self] in await serveSlot(slot, source) }
    }
  }

  @inlinable func serveSlot<Source: RequestSource>(_ slot: Int, _ source: Source) async {
    repeat {
      var failure = unsafe await source.serve(states[slot].request, slot: slot)
      if failure == .noSpace, let retry = options.retryNoSpace {
        var attempt = 0
        while failure == .noSpace, await retryInTurn(slot, source, retry, attempt) {
          attempt += 1
          failure = unsafe await source.serve(states[slot].request, slot: slot)
        }
      }
      source.readClock()
      end(slot, failure?.code ?? 0, source)
      endTurn(source)
    } while await nextRequest(slot)
    unsafe states[slot].hasTask = false
  }

  /// Asks `retry` whether to serve a request again, and lets others have their turn while it waits.
  @inlinable func retryInTurn<Source: RequestSource>(
    _ slot: Int, _ source: Source, _ retry: (Int) async -> Bool, _ attempt: Int
  ) async -> Bool {
    endTurn(source)
    let isTriedAgain = await retry(attempt)
    guard unsafe !turns.pointee.isFree else {
      unsafe turns.pointee.begin()
      return isTriedAgain
    }
    unsafe turns.pointee.wait(slot, states)
    _ = unsafe await withUnsafeContinuation { unsafe states[slot].parked = unsafe $0 }
    return isTriedAgain
  }

  /// A request on the slow path has ended: those that wait come next.
  @inlinable func endTurn<Source: RequestSource>(_ source: Source) {
    unsafe turns.pointee.end()
    while let next = unsafe turns.pointee.next(states) { wakeServing(next, source) }
  }

  /// Parks the slot's task until there is a request; false when the worker ends.
  @inlinable func nextRequest(_ slot: Int) async -> Bool {
    if unsafe states[slot].hasWork {
      unsafe states[slot].hasWork = false
      return true
    }
    if isEnding { return false }
    return unsafe await withUnsafeContinuation { unsafe states[slot].parked = unsafe $0 }
  }

  /// Lets all tasks of slots end, once nothing is in flight; no request may start afterwards.
  public func endTasks() {
    isEnding = true
    for slot in slots {
      let parked = unsafe states[slot].parked
      unsafe states[slot].parked = nil
      unsafe parked?.resume(returning: false)
    }
  }
}
