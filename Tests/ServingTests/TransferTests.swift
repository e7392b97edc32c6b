import BlockCore
import Serving
import Synchronization
import Testing

/// Transfers that end otherwise than in full: hazards IO-1, IO-2, IO-7, IO-8.
@Suite(.serialized) struct TransferTests {
  private static let count = 4096
  private let buffer = IOBuffer(count: TransferTests.count)
  private let bytes = (0..<16384).map { UInt8(truncatingIfNeeded: $0 / 3 + 1) }

  private func request(_ operation: BlockOperation) -> BlockRequest {
    BlockRequest(operation, length: UInt64(Self.count), data: buffer.data)
  }

  private func contents() -> [UInt8] {
    buffer.withBytes { bytes in (0..<Self.count).map { bytes[$0] } }
  }

  /// Carries out one request of one transfer at host offset 8192.
  private func transfer(
    _ operation: BlockOperation, file: [UInt8]? = nil,
    answer: @escaping @Sendable (_ count: Int, _ number: Int) -> Int32,
    check: @escaping @Sendable (ScriptedSource, ScriptedTarget) throws -> Void
  ) throws {
    let target = ScriptedTarget([.file(Self.count, at: 8192)])
    let request = request(operation)
    try ScriptedSource.run(target, file: file ?? bytes) { source in
      source.answer = answer
      source.requests.start(request, slot: 3, for: source)
    } then: { source in
      #expect(source.requests.inFlight == 0)
      #expect(source.ends.count == 1 && source.ends.first?.slot == 3)
      try check(source, target)
    }
  }

  @Test(arguments: [512, 1024, 3584])
  func `a short read goes on where it ended`(first: Int) throws {
    try transfer(.read) { count, number in
      Int32(number == 0 ? first : count)
    } check: { source, _ in
      #expect(source.ends[0].failure == 0)
      #expect(
        source.submissions.map(\.hostOffset) == [8192, 8192 + UInt64(first)]
          && source.submissions.map(\.count) == [4096, 4096 - first])
    }
    #expect(contents() == Array(bytes[8192..<12288]))
  }

  @Test func `a read that comes sector by sector is whole`() throws {
    try transfer(.read) { _, _ in
      512
    } check: { source, _ in
      #expect(source.ends[0].failure == 0 && source.submissions.count == 8)
    }
    #expect(contents() == Array(bytes[8192..<12288]))
  }

  @Test(arguments: [0, 100, 700, 4095])
  func `beyond the end of the host file a read is zeros`(left: Int) throws {
    buffer.withMutableBytes { for index in $0.indices { $0[index] = 0xEE } }
    try transfer(.read) { count, number in
      number == 0 ? Int32(left) : Int32(count)
    } check: { source, _ in
      #expect(source.ends[0].failure == 0 && source.submissions.count == 1)
    }
    #expect(
      contents() == Array(bytes[8192..<(8192 + left)])
        + [UInt8](repeating: 0, count: Self.count - left))
  }

  @Test(arguments: [512, 2048])
  func `a short write goes on where it ended`(first: Int) throws {
    buffer.withMutableBytes { for index in $0.indices { $0[index] = UInt8(index % 251) } }
    let expected = contents()
    try transfer(.write) { count, number in
      Int32(number == 0 ? first : count)
    } check: { source, _ in
      #expect(source.ends[0].failure == 0 && source.submissions.count == 2)
      #expect(Array(source.file[8192..<12288]) == expected)
    }
  }

  @Test(arguments: [0, 100, 4097])
  func `a write that cannot go on has failed`(result: Int) throws {
    try transfer(.write) { _, _ in
      Int32(result)
    } check: { source, target in
      #expect(source.ends[0].failure == Errno.io.code && source.submissions.count == 1)
      #expect(target.seen.withLock { $0.finished } == [true])
    }
  }

  @Test(arguments: [(Errno.again, 1), (.again, 10), (.again, 64), (.interrupted, 64)])
  func `what the kernel turns away for now is tried again, after pauses that grow`(
    error: Errno, times: Int
  ) throws {
    try transfer(.read) { count, number in
      number < times ? -error.code : Int32(count)
    } check: { source, _ in
      #expect(source.ends[0].failure == 0 && source.submissions.count == times + 1)
      #expect(source.pauses == source.pauses.sorted())
      if times == 64 {
        #expect(source.pauses.count >= 48 && source.pauses.reduce(0, +) > 400)
      }
    }
    #expect(contents() == Array(bytes[8192..<12288]))
  }

  @Test(arguments: [Errno.again, .interrupted])
  func `but not for ever`(error: Errno) throws {
    try transfer(.write) { _, _ in
      -error.code
    } check: { source, target in
      #expect(source.ends[0].failure == Errno.io.code && source.submissions.count == 65)
      #expect(target.seen.withLock { $0.finished } == [true])
    }
  }

  @Test func `a request ends after its last transfer, with the first failure`() throws {
    let target = ScriptedTarget([
      .file(512, at: 0), .file(512, data: 512, at: 4096),
      HostTransfer(kind: .zeroes, length: 512, dataOffset: 1024, hostOffset: HostOffset(0)),
      .file(2560, data: 1536, at: 8192),
    ])
    let request = request(.read)
    try ScriptedSource.run(target, file: bytes) { source in
      source.answer = { count, number in number == 0 ? Int32(count) : -Int32(number + 20) }
      source.requests.start(request, slot: 0, for: source)
      #expect(source.ends.isEmpty)
    } then: { source in
      #expect(source.ends.map(\.failure) == [21] && source.submissions.count == 3)
      #expect(target.seen.withLock { $0.finished } == [true])
      #expect(source.requests.counters.failures.current == 1)
      #expect(source.requests.counters.transfers.current == 3)
    }
    #expect(contents()[1024..<1536].allSatisfy { $0 == 0 })
  }

  @Test(arguments: [Errno.noSpace, .quota, .fileTooBig])
  func `a transfer that finds the host full is served, and told of`(error: Errno) throws {
    let target = ScriptedTarget([.file(Self.count, at: 8192)])
    let told = Told()
    var options = RequestDriverOptions()
    options.onTransferFailure = { transfer, operation, errno in
      told.add(transfer.hostOffset.bytes, operation, errno)
    }
    let request = request(.write)
    try ScriptedSource.run(target, options: options, file: bytes) { source in
      source.answer = { _, _ in -error.code }
      source.requests.start(request, slot: 0, for: source)
    } then: { source in
      #expect(source.ends.map(\.failure) == [0])
      #expect(target.seen.withLock { $0.served } == [.write])
      #expect(told.all == ["8192 write \(error.code)"])
    }
  }

  @Test func `zeros for a registered buffer are a transfer, and may come short`() throws {
    let zeroes = HostTransfer(
      kind: .zeroes, length: UInt32(Self.count), dataOffset: 0, hostOffset: HostOffset(0))
    let target = ScriptedTarget([zeroes])
    try ScriptedSource.run(target) { source in
      source.answer = { count, number in number == 0 ? 700 : Int32(count) }
      let data = DataBuffer(registered: 1, offset: 0, count: Self.count)
      source.requests.start(
        BlockRequest(.read, length: UInt64(Self.count), data: data), slot: 0, for: source)
    } then: { source in
      #expect(source.ends.map(\.failure) == [0])
      #expect(source.submissions.map(\.count) == [4096, 3396])
      #expect(source.submissions.allSatisfy { $0.kind == .zeroes })
    }
  }
}

private final class Told: @unchecked Sendable {  // why: read after the join
  private(set) var all: [String] = []

  func add(_ offset: UInt64, _ operation: BlockOperation, _ error: Errno) {
    all.append("\(offset) \(operation) \(error.code)")
  }
}
