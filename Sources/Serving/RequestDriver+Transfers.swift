public import BlockCore

/// The hit path: a plan's transfers straight to the host files, then the end.
extension RequestDriver {
  /// Starts the first `count` transfers of the slot's plan; ends at once if there is nothing to do.
  @inlinable @inline(__always) func startTransfers<Source: RequestSource>(
    _ slot: Int, _ count: Int, _ source: Source
  ) {
    unsafe states[slot].failure = 0
    unsafe states[slot].retries = 0
    unsafe states[slot].pending = UInt16(truncatingIfNeeded: count)
    for part in 0..<count { startTransfer(slot, part, source) }
    if count == 0 { finishTransfers(slot, source) }
  }

  @inlinable @inline(__always) func startTransfer<Source: RequestSource>(
    _ slot: Int, _ part: Int, _ source: Source
  ) {
    let transfer = unsafe plans[slot * Self.planCapacity + part]
    let data = unsafe states[slot].request.data.slice(
      Int(transfer.dataOffset), Int(transfer.length))
    if transfer.kind == .zeroes, let memory = unsafe data.memory {
      unsafe memory.initializeMemory(as: UInt8.self, repeating: 0, count: data.count)
      return endTransfer(slot, source)
    }
    counters.transfers.add()
    let isRead = unsafe states[slot].request.operation == .read
    source.submit(transfer, data, isRead: isRead, slot: slot, part: part)
  }

  /// One transfer has come back, with the number of its bytes or a negative errno.
  @inlinable public func transferred<Source: RequestSource>(
    _ slot: Int, part: Int, result: Int32, for source: Source
  ) {
    unsafe assert(states[slot].pending > 0, "a transfer comes back that nobody waits for")
    if unsafe result == Int32(bitPattern: plans[slot * Self.planCapacity + part].length) {
      endTransfer(slot, source)
    } else {
      continueTransfer(slot, part, result, source)
    }
  }

  @inlinable @inline(__always) func endTransfer<Source: RequestSource>(
    _ slot: Int, _ source: Source
  ) {
    unsafe states[slot].pending &-= 1
    if unsafe states[slot].pending == 0 { finishTransfers(slot, source) }
  }

  @inlinable func finishTransfers<Source: RequestSource>(_ slot: Int, _ source: Source) {
    let failure = unsafe states[slot].failure
    let rest = target.finish(
      at: RequestSlot(worker: worker, number: slot), failed: failure != 0)
    if rest == .needsService || failure == Errno.noSpace.code {
      // What the hit path began is to be completed; or the host is full: the target may know how to
      // make room, or the request is held.
      startServing(slot, holdsRange: rest == .needsService, for: source)
    } else {
      end(slot, failure, source)
    }
  }

  // MARK: Partial transfers

  /// Carries on after a transfer that failed or did less than it was asked for.
  @inlinable func continueTransfer<Source: RequestSource>(
    _ slot: Int, _ part: Int, _ result: Int32, _ source: Source
  ) {
    let place = slot * Self.planCapacity + part
    if result < 0 {
      retryOrFail(slot, part, Errno(-result), source)
    } else if unsafe result > 0 && result < Int32(bitPattern: plans[place].length)
      && (result % 512 == 0 || plans[place].kind == .zeroes)
    {
      advance(place, by: result)
      startTransfer(slot, part, source)
    } else if unsafe states[slot].request.operation == .read, unsafe plans[place].kind == .file,
      unsafe result < Int32(bitPattern: plans[place].length)
    {
      // The end of the host file: what lies beyond reads as zeros.
      advance(place, by: result)
      unsafe plans[place].kind = .zeroes
      startTransfer(slot, part, source)
    } else {
      fail(slot, part, .io, source)
    }
  }

  @inlinable func advance(_ place: Int, by count: Int32) {
    unsafe plans[place].length -= UInt32(count)
    unsafe plans[place].dataOffset += UInt32(count)
    unsafe plans[place].hostOffset = unsafe plans[place].hostOffset + UInt64(count)
  }

  @inlinable func retryOrFail<Source: RequestSource>(
    _ slot: Int, _ part: Int, _ error: Errno, _ source: Source
  ) {
    let attempt = unsafe Int(states[slot].retries)
    guard let pause = error.pause(beforeAttempt: attempt) else {
      return fail(slot, part, error.isTransient ? .io : error, source)
    }
    unsafe states[slot].retries += 1
    guard pause > 0 else { return startTransfer(slot, part, source) }
    source.spawn { [self] in
      await source.pause(milliseconds: pause)
      startTransfer(slot, part, source)
    }
  }

  @inlinable func fail<Source: RequestSource>(
    _ slot: Int, _ part: Int, _ error: Errno, _ source: Source
  ) {
    let transfer = unsafe plans[slot * Self.planCapacity + part]
    if transfer.kind == .file {
      unsafe options.onTransferFailure?(transfer, states[slot].request.operation, error)
    }
    if unsafe states[slot].failure == 0 { unsafe states[slot].failure = error.forGuest.code }
    endTransfer(slot, source)
  }
}
