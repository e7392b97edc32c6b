import BlockCore
import Serving
import Synchronization
import Testing

/// Which path a request takes, and what may come after it.
@Suite(.serialized) struct DispatchTests {
  private let buffer = IOBuffer(count: 4096)

  private func request(
    _ operation: BlockOperation, isFUA: Bool = false, keepsAllocation: Bool = false
  ) -> BlockRequest {
    let hasData = operation == .read || operation == .write
    return BlockRequest(
      operation, length: operation == .flush ? 0 : 4096, data: hasData ? buffer.data : .none,
      isFUA: isFUA, keepsAllocation: keepsAllocation)
  }

  @Test func `only reads and writes of which no more is asked are planned`() throws {
    let target = ScriptedTarget(nil)
    var compressed = request(.write)
    compressed.compresses = true
    let all = [
      request(.flush), request(.discard), request(.writeZeroes),
      request(.writeZeroes, keepsAllocation: true), request(.write, isFUA: true), compressed,
      request(.read), request(.write),
    ]
    try ScriptedSource.run(target) { source in
      for (slot, request) in all.enumerated() {
        source.requests.start(request, slot: slot, for: source)
      }
    } then: { source in
      #expect(target.seen.withLock { $0.planned } == [.read, .write])
      #expect(target.seen.withLock { $0.served } == all.map(\.operation))
      #expect(source.ends.map(\.slot) == Array(0..<8))
      #expect(source.ends.allSatisfy { $0.failure == 0 })
      #expect(source.requests.counters.arrivals.current == 8)
      #expect(source.requests.counters.slowRequests(.write) == 3)
    }
  }

  @Test func `what finish leaves is served, and its failure is the request's`() throws {
    let target = ScriptedTarget([], rest: .needsService, outcome: .failed(.readOnly))
    let request = request(.write)
    try ScriptedSource.run(target) { source in
      source.requests.start(request, slot: 0, for: source)
    } then: { source in
      #expect(target.seen.withLock { $0.finished } == [false])
      #expect(source.ends.map(\.failure) == [Errno.readOnly.code])
    }
  }

  @Test func `service that memory of the source's own would need fails in a source without`() throws
  {
    let target = ScriptedTarget(nil, outcome: .needsMemory)
    let request = request(.read)
    try ScriptedSource.run(target) { source in
      source.requests.start(request, slot: 0, for: source)
    } then: { source in
      #expect(source.ends.map(\.failure) == [Errno.notSupported.code])
    }
  }

  @Test(arguments: [1, 2]) func `the end of a request may start the next one in its slot`(
    limit: Int
  ) throws {
    let target = ScriptedTarget(nil)
    var options = RequestDriverOptions()
    options.servingLimit = limit
    let request = request(.read)
    try ScriptedSource.run(target, slots: 2, options: options) { source in
      source.onEnd = { [unowned source] slot in
        if source.ends.count < 9 { source.requests.start(request, slot: slot, for: source) }
      }
      for slot in 0..<2 { source.requests.start(request, slot: slot, for: source) }
    } then: { source in
      #expect(source.ends.count == 10 && source.requests.inFlight == 0)
      #expect(target.seen.withLock { $0.served.count } == 10)
    }
  }
}
