import BlockCore
import Uring

/// The synchronous path: a plan's transfers straight into the ring, then the commit.
extension QueueWorker {
  /// Starts the first `count` transfers of the tag's plan; commits at once if there is nothing to do.
  func startTransfers(_ tag: Int, _ count: Int) {
    unsafe tags[tag].phase = .transferring
    unsafe tags[tag].failure = 0
    unsafe tags[tag].retries = 0
    unsafe tags[tag].pending = UInt16(count)
    for part in 0..<count { startTransfer(tag, part) }
    if count == 0 { finishTransfers(tag) }
  }

  private func startTransfer(_ tag: Int, _ part: Int) {
    let transfer = unsafe plans[tag * Self.planCapacity + part]
    let request = unsafe tags[tag].request
    let data = request.data.slice(Int(transfer.dataOffset), Int(transfer.length))
    var entry: SubmissionEntry
    switch transfer.kind {
    case .zeroes:
      if let memory = unsafe data.memory {
        unsafe memory.initializeMemory(as: UInt8.self, repeating: 0, count: data.count)
        return endTransfer(tag)
      }
      entry = .read(Self.zeroSlot, into: data, at: 0)
    case .file where request.operation == .read:
      entry = .read(Self.fileSlot(transfer.file), into: data, at: transfer.hostOffset.bytes)
    case .file:
      entry = .write(Self.fileSlot(transfer.file), from: data, at: transfer.hostOffset.bytes)
    }
    entry.userData = UserData(.transfer, slot: tag, part: part).word
    setup.counters.transfers.add()
    loop.ring.push(entry)
  }

  /// One transfer has come back.
  func transferred(_ tag: Int, part: Int, result: Int32) {
    if unsafe result == Int32(bitPattern: plans[tag * Self.planCapacity + part].length) {
      endTransfer(tag)
    } else {
      continueTransfer(tag, part, result)
    }
  }

  private func endTransfer(_ tag: Int) {
    unsafe tags[tag].pending -= 1
    if unsafe tags[tag].pending == 0 { finishTransfers(tag) }
  }

  private func finishTransfers(_ tag: Int) {
    let failure = unsafe tags[tag].failure
    let rest = target.finish(worker: setup.queue, slot: tag, failed: failure != 0)
    if rest == .needsService || failure == Errno.noSpace.code {
      // What the hit path began is to be completed; or the host is full: the target may know how to
      // make room, or the request is held.
      startServing(tag, holdsRange: rest == .needsService)
    } else {
      commit(tag, outcome: failure)
    }
  }

  // MARK: Partial transfers

  /// Carries on after a transfer that failed or did less than it was asked for.
  private func continueTransfer(_ tag: Int, _ part: Int, _ result: Int32) {
    let place = tag * Self.planCapacity + part
    if result < 0 {
      retryOrFail(tag, part, Errno(-result))
    } else if result > 0, unsafe result % 512 == 0 || plans[place].kind == .zeroes {
      advance(place, by: result)
      startTransfer(tag, part)
    } else if unsafe tags[tag].request.operation == .read, unsafe plans[place].kind == .file {
      // The end of the host file: what lies beyond reads as zeros.
      advance(place, by: result)
      unsafe plans[place].kind = .zeroes
      startTransfer(tag, part)
    } else {
      fail(tag, part, .io)
    }
  }

  private func advance(_ place: Int, by count: Int32) {
    unsafe plans[place].length -= UInt32(count)
    unsafe plans[place].dataOffset += UInt32(count)
    unsafe plans[place].hostOffset = unsafe plans[place].hostOffset + UInt64(count)
  }

  private func retryOrFail(_ tag: Int, _ part: Int, _ error: Errno) {
    guard error == .again || error == .interrupted else { return fail(tag, part, error) }
    guard unsafe tags[tag].retries < 64 else { return fail(tag, part, .io) }
    unsafe tags[tag].retries += 1
    startTransfer(tag, part)
  }

  private func fail(_ tag: Int, _ part: Int, _ error: Errno) {
    let transfer = unsafe plans[tag * Self.planCapacity + part]
    if transfer.kind == .file {
      unsafe setup.onTransferFailure?(transfer, tags[tag].request.operation, error)
    }
    if unsafe tags[tag].failure == 0 { unsafe tags[tag].failure = error.forGuest.code }
    endTransfer(tag)
  }
}
