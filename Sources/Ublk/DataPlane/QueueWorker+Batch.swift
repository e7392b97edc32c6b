import BlockCore
import CUblk
import Serving
import Uring

/// The batch mode: one multishot command brings the tags of many requests, one command takes the
/// results of a whole turn.
///
/// Source: Linux Documentation/block/ublk.rst, "Batch I/O Commands".
extension QueueWorker {
  private static let group: UInt16 = 0
  /// The tags that one completion can bring.
  private static let tagsPerFetch = 64

  /// As many buffers as there are tags: every completion that waits has at least one tag.
  static func fetchBuffers(
    _ loop: WorkerLoop, depth: Int
  ) throws(Errno) -> ProvidedBuffers {
    try ProvidedBuffers(
      loop.ring, group: group, count: powerOfTwo(depth),
      bufferBytes: 2 * min(depth, tagsPerFetch))
  }

  /// Tells the driver all tags and asks for requests.
  func startBatches() {
    for tag in 0..<setup.depth {
      unsafe tags[tag].phase = .fetching
      append(tag, result: 0)
    }
    send(UBLK_IO_PREP_BATCH)
    armFetch()
  }

  private func armFetch() {
    let payload = UInt64(UInt16(setup.queue)) | 2 << 48
    var entry = SubmissionEntry.multishotCommand(
      UBLK_IO_FETCH_BATCH, Self.characterSlot, payload: (payload, 0), group: Self.group)
    entry.userData = UserData(.batchFetch).word
    loop.ring.push(entry)
    openTags += 1
  }

  /// Adds a result to the batch of this turn.
  func commitLater(_ tag: Int, result: Int32) {
    unsafe tags[tag].phase = .fetching
    append(tag, result: result)
    openTags -= 1
  }

  private func append(_ tag: Int, result: Int32) {
    let address =
      setup.usesZeroCopy
      ? 0 : unsafe UInt64(UInt(bitPattern: memory.buffers + tag * memory.bufferBytes))
    if !batch.append(tag, result: result, address: address) { lose(.tooBig) }
  }

  func endTurn() {
    if batch.current >= 0 { send(UBLK_IO_COMMIT_BATCH) }
  }

  private func send(_ opcode: UInt32) {
    guard let (index, elements, count) = batch.close() else { return }
    let flags =
      setup.usesZeroCopy ? UBLK_BATCH_F_AUTO_BUF_REG_FALLBACK : UBLK_BATCH_F_HAS_BUF_ADDR
    let payload =
      UInt64(UInt16(setup.queue)) | UInt64(flags) << 16 | UInt64(UInt16(count)) << 32
      | UInt64(batch.elementBytes) << 48
    var entry = SubmissionEntry.command(
      opcode, Self.characterSlot, payload: (payload, 0), address: elements)
    entry.length = UInt32(count * batch.elementBytes)
    entry.userData =
      UserData(.batchCommit, slot: index, part: opcode == UBLK_IO_PREP_BATCH ? 1 : 0).word
    loop.ring.push(entry)
    openTags += 1
  }

  // MARK: Completions

  func completeBatch(_ userData: UserData, result: Int32, flags: CompletionFlags) {
    if userData.kind == .batchFetch {
      fetched(result, flags)
    } else if userData.part == 1 {
      prepared(userData.slot, result)
    } else {
      committed(userData.slot, result)
    }
  }

  private func prepared(_ index: Int, _ result: Int32) {
    openTags -= 1
    batch.release(index)
    if result < 0 { lose(Errno(-result)) }
  }

  /// Requests have come, or the command has ended: for good with ENODEV, else to be sent again.
  ///
  /// What it did not bring stays in the driver for the next one.
  private func fetched(_ result: Int32, _ flags: CompletionFlags) {
    if !flags.hasMore { openTags -= 1 }
    if let id = flags.buffer {
      if result > 0 {
        refusedSince = 0
        start(id, bytes: Int(result))
      }
      fetchBuffers?.giveBack(id)
    }
    guard !flags.hasMore, result != -Errno.noDevice.code else { return }
    if result >= 0 { return armFetch() }
    let error = Errno(-result)
    if error == .noBuffers, refusedSince == 0 {
      // Each buffer was given back when its completion was reaped: there are some now.
      refusedSince = max(loop.now, 1)
      armFetch()
    } else {
      retry(error) { $0.armFetch() }
    }
  }

  private func start(_ id: Int, bytes: Int) {
    guard let buffer = unsafe fetchBuffers?.buffer(id), !isDraining else { return }
    for place in stride(from: 0, to: min(bytes, buffer.count) & ~1, by: 2) {
      let tag = Int(unsafe buffer.loadUnaligned(fromByteOffset: place, as: UInt16.self))
      guard tag < setup.depth, unsafe tags[tag].phase == .fetching else { continue }
      openTags += 1
      unsafe dispatch(tag, IODescriptor(memory.descriptors[tag]))
    }
  }

  /// The driver has answered to a batch.
  private func committed(_ index: Int, _ result: Int32) {
    openTags -= 1
    let count = batch.count(index)
    switch CommitAnswer(result: result, count: count, elementBytes: batch.elementBytes) {
    case .whole:
      refusedSince = 0
      batch.release(index)
    case .partial(let taken):
      refusedSince = 0
      setup.counters.driverErrors.add()
      commitAgain(index, from: taken)
    case .notOurs:
      setup.counters.driverErrors.add()
      commitAgain(index, from: 1)
    case .later(let error):
      retry(error) { $0.commitAgain(index, from: 0) }
    case .refused(let error):
      setup.counters.driverErrors.add()
      batch.release(index)
      lose(error)
    }
  }

  private func commitAgain(_ index: Int, from start: Int) {
    for place in start..<batch.count(index) {
      let element = batch.element(index, place)
      append(element.tag, result: element.result)
    }
    batch.release(index)
  }
}
