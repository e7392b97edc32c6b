import BlockCore
import CUblk
import Uring

/// From the driver's descriptor to the path that carries the request out.
extension QueueWorker {
  /// Checks the request in `tag` and starts it on the hit path or the slow path.
  func dispatch(_ tag: Int, _ descriptor: IODescriptor) {
    do throws(Errno) {
      var request = try descriptor.request(size: target.size, maxIOBytes: setup.maxIOBytes)
      request.data = data(tag, of: request)
      unsafe tags[tag].request = request
      unsafe tags[tag].needsUserCopy = false
      if setup.usesZeroCopy && descriptor.lacksRegisteredBuffer {
        setup.counters.unregisteredRequests.add()
        unsafe tags[tag].needsUserCopy = true
        return startServing(tag)
      }
    } catch {
      unsafe tags[tag].request = BlockRequest(.flush)
      setup.counters.refusals.add()
      return commit(tag, result: -error.code)
    }
    plan(tag)
  }

  /// Asks the target for host transfers and starts them, or hands over to the slow path.
  private func plan(_ tag: Int) {
    // Durability before completion means waiting for metadata: never a matter of transfers alone.
    if unsafe tags[tag].request.isFUA { return startServing(tag) }
    let buffer = unsafe UnsafeMutableBufferPointer(
      start: plans + tag * Self.planCapacity, count: Self.planCapacity)
    switch unsafe target.plan(tags[tag].request, worker: setup.queue, slot: tag, into: buffer) {
    case .transfers(let count): startTransfers(tag, count)
    case .needsService: startServing(tag)
    }
  }

  /// Where the data of the request in `tag` lies.
  private func data(_ tag: Int, of request: BlockRequest) -> DataBuffer {
    guard request.operation == .read || request.operation == .write else { return .none }
    let count = Int(request.length)
    if setup.usesZeroCopy { return DataBuffer(registered: Int32(tag), offset: 0, count: count) }
    return memory.buffer(tag, count)
  }
}
