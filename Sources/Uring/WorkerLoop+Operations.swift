import BlockCore

extension WorkerLoop {
  /// Submits `entry` and suspends until it has completed; returns the kernel's result.
  ///
  /// Call from a task that runs on this loop's executor. -EAGAIN if 65536 operations are already
  /// in flight.
  public func perform(_ entry: SubmissionEntry) async -> Int32 {
    assertOwnThread()
    guard slots.hasRoom() else { return -Errno.again.code }
    counters.note(entry)
    return unsafe await withUnsafeContinuation { continuation in
      var entry = entry
      entry.userData = unsafe UserData(.operation, slot: slots.take(continuation)).word
      ring.push(entry)
    }
  }

  /// Suspends for `milliseconds`, or until ``endSleeps()``.
  ///
  /// - Returns: Whether the time has passed; false means that the worker is about to end.
  @discardableResult
  public func sleep(milliseconds: Int) async -> Bool {
    assertOwnThread()
    guard !sleepsHaveEnded, slots.hasRoom() else { return !sleepsHaveEnded }
    let result: Int32 = unsafe await withUnsafeContinuation { continuation in
      let index = unsafe slots.take(continuation)
      let slot = unsafe slots[index]
      unsafe slot.pointee.isTimer = true
      unsafe slot.pointee.timespec = (
        Int64(milliseconds / 1000), Int64(milliseconds % 1000) * 1_000_000
      )
      var entry = unsafe SubmissionEntry.timeout(after: slots.timespec(index))
      entry.userData = UserData(.operation, slot: index).word
      ring.push(entry)
    }
    return result != -125  // ECANCELED
  }

  /// Ends all sleeps now and every later one at once.
  public func endSleeps() {
    sleepsHaveEnded = true
    slots.forEachTimer { index in
      ring.push(.removeTimeout(UserData(.operation, slot: index)))
    }
  }

  /// The number of asynchronous operations that have not completed.
  public var operationsInFlight: Int { slots.inFlight }

  @usableFromInline func finishOperation(_ index: Int, result: Int32) {
    unsafe slots.release(index)?.resume(returning: result)
  }
}
