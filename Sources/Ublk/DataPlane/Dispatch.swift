import BlockCore
import CUblk
import Serving
import Uring

/// From the driver's descriptor to the request that is carried out.
extension QueueWorker {
  /// Checks the request in `tag` and starts it.
  func dispatch(_ tag: Int, _ descriptor: IODescriptor) {
    unsafe tags[tag].phase = .serving
    do throws(Errno) {
      var request = try descriptor.request(size: requests.size, maxIOBytes: setup.maxIOBytes)
      request.data = data(tag, of: request)
      unsafe tags[tag].needsUserCopy = false
      if setup.usesZeroCopy && descriptor.lacksRegisteredBuffer {
        setup.counters.unregisteredRequests.add()
        unsafe tags[tag].needsUserCopy = true
        return requests.startOnSlowPath(request, slot: tag, for: self)
      }
      requests.start(request, slot: tag, for: self)
    } catch {
      setup.counters.arrivals.add()
      setup.counters.refusals.add()
      setup.counters.failures.add()
      commit(tag, result: -error.code)
    }
  }

  /// Where the data of the request in `tag` lies.
  @inline(__always) private func data(_ tag: Int, of request: BlockRequest) -> DataBuffer {
    guard request.operation == .read || request.operation == .write else { return .none }
    let count = Int(request.length)
    if setup.usesZeroCopy { return DataBuffer(registered: Int32(tag), offset: 0, count: count) }
    return memory.buffer(tag, count)
  }
}
