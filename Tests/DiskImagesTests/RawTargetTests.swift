import BlockCore
import DiskImages
import TestTools
import Testing

@Suite struct RawTargetTests {
  private func planned(_ target: RawTarget, _ request: BlockRequest) -> [HostTransfer]? {
    withUnsafeTemporaryAllocation(of: HostTransfer.self, capacity: 4) { plan in
      switch target.plan(request, at: RequestSlot(worker: 0, number: 0), into: plan) {
      case .needsService: nil
      case .transfers(let count): Array(plan[0..<count])
      }
    }
  }

  private func request(
    _ operation: BlockOperation, _ offset: UInt64, _ length: UInt64
  ) -> BlockRequest {
    BlockRequest(operation, offset: GuestOffset(offset), length: length)
  }

  @Test func whatIsInTheFileIsPlanned() throws {
    let target = RawTarget(ArrayFile(count: 4096), length: 4096)
    for operation in [BlockOperation.read, .write] {
      let transfers = try #require(planned(target, request(operation, 512, 1024)))
      try #require(transfers.count == 1)
      #expect(transfers[0].kind == .file)
      #expect(transfers[0].file == 0)
      #expect(transfers[0].length == 1024)
      #expect(transfers[0].dataOffset == 0)
      #expect(transfers[0].hostOffset == HostOffset(512))
    }
  }

  @Test func whatIsNotPlannedIsServedOrRefused() async {
    let file = ArrayFile(count: 4096)
    let target = RawTarget(file, length: 4096)
    var forced = request(.write, 0, 512)
    forced.isFUA = true
    for one in [
      forced, request(.flush, 0, 0), request(.discard, 0, 512), request(.writeZeroes, 0, 512),
      request(.read, 0, 4608), request(.read, 4096, 512), request(.read, 1, 512),
      request(.read, 0, 511), request(.read, .max - 511, 512), request(.read, 0, .max - 511),
    ] { #expect(planned(target, one) == nil) }
    for one in [
      request(.read, 0, 4608), request(.writeZeroes, 4096, 512), request(.discard, 1, 512),
      request(.writeZeroes, .max - 511, 512),
    ] {
      #expect(await target.serve(one, at: RequestSlot(worker: 0, number: 0)) == .failed(.invalid))
    }
    #expect(
      await target.serve(request(.writeZeroes, 0, 512), at: RequestSlot(worker: 0, number: 0))
        == .done)
    #expect(
      await target.serve(request(.flush, 0, 0), at: RequestSlot(worker: 0, number: 0)) == .done)
    #expect(file.syncs == 1)
  }

  @Test func aFileThatEndsInsideASectorHasAWholeOne() async {
    let target = RawTarget(ArrayFile(count: 1000), length: 1000)
    #expect(target.size == 1024)
    #expect(planned(target, request(.read, 0, 512)) != nil)
    #expect(planned(target, request(.read, 512, 512)) == nil)
    let buffer = IOBuffer(count: 512)
    let read = BlockRequest(
      .read, offset: GuestOffset(512), length: 512, data: buffer.data)
    #expect(await target.serve(read, at: RequestSlot(worker: 0, number: 0)) == .done)
    let bytes = UnsafeRawBufferPointer(start: buffer.base, count: 512)
    #expect(bytes[..<488].allSatisfy { $0 == 0xee })
    #expect(bytes[488...].allSatisfy { $0 == 0 })
  }

  @Test func aReadOnlyFileIsNotWritten() async {
    let target = RawTarget(ArrayFile(count: 4096, isReadOnly: true), length: 4096)
    #expect(planned(target, request(.write, 0, 512)) == nil)
    for operation in [BlockOperation.write, .discard, .writeZeroes] {
      let outcome = await target.serve(
        request(operation, 0, 512), at: RequestSlot(worker: 0, number: 0))
      #expect(outcome == .failed(.readOnly))
    }
    #expect(
      await target.serve(request(.flush, 0, 0), at: RequestSlot(worker: 0, number: 0)) == .done)
  }

  @Test func aFailedSyncFailsAllLaterOnes() async {
    let file = ArrayFile(count: 4096)
    let target = RawTarget(file, length: 4096)
    file.syncFailure = .io
    let flush = request(.flush, 0, 0)
    #expect(await target.serve(flush, at: RequestSlot(worker: 0, number: 0)) == .failed(.io))
    file.syncFailure = nil
    #expect(await target.serve(flush, at: RequestSlot(worker: 0, number: 0)) == .failed(.io))
    var forced = request(.writeZeroes, 0, 512)
    forced.isFUA = true
    #expect(await target.serve(forced, at: RequestSlot(worker: 0, number: 0)) == .failed(.io))
  }

  @Test func aQuotaOfTheHostsIsNoSpace() async {
    let file = ArrayFile(count: 4096)
    file.syncFailure = .quota
    let target = RawTarget(file, length: 4096)
    let outcome = await target.serve(request(.flush, 0, 0), at: RequestSlot(worker: 0, number: 0))
    #expect(outcome == .failed(.noSpace))
  }

  @Test func theSizeFollowsTheFile() async throws {
    let target = RawTarget(ArrayFile(count: 4096), length: 4096)
    try await target.resize(to: 8192)
    #expect(target.size == 8192)
    #expect(planned(target, request(.read, 4096, 4096)) != nil)
    try await target.resize(to: 512)
    #expect(planned(target, request(.read, 0, 1024)) == nil)
    await #expect(throws: Errno.invalid) { try await target.resize(to: 100) }
  }
}

/// A file of 0xee bytes in memory.
private final class ArrayFile: HostFile, @unchecked Sendable {
  // why: each test uses its file from one task
  let traits: HostFileTraits
  private var bytes: [UInt8]
  var syncFailure: Errno?
  private(set) var syncs = 0

  init(count: Int, isReadOnly: Bool = false) {
    bytes = Array(repeating: 0xee, count: count)
    traits = HostFileTraits(isReadOnly: isReadOnly)
  }

  func read(into buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    guard let memory = buffer.memory else { throw .invalid }
    for index in 0..<buffer.count {
      let position = Int(offset.bytes) + index
      memory.storeBytes(
        of: position < bytes.count ? bytes[position] : 0, toByteOffset: index, as: UInt8.self)
    }
  }

  func write(from buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    guard let memory = buffer.memory else { throw .invalid }
    let end = Int(offset.bytes) + buffer.count
    if bytes.count < end { bytes += Array(repeating: 0, count: end - bytes.count) }
    for index in 0..<buffer.count {
      bytes[Int(offset.bytes) + index] = memory.load(fromByteOffset: index, as: UInt8.self)
    }
  }

  func writeZeroes(at offset: HostOffset, length: UInt64) async throws(Errno) {
    for position in Int(offset.bytes)..<Int(offset.bytes + length) { bytes[position] = 0 }
  }

  func punchHole(at offset: HostOffset, length: UInt64) async throws(Errno) {}

  func sync() async throws(Errno) {
    if let syncFailure { throw syncFailure }
    syncs += 1
  }

  func length() async throws(Errno) -> UInt64 { UInt64(bytes.count) }

  func extend(to length: UInt64) async throws(Errno) {
    if bytes.count < length { try await setLength(length) }
  }

  func setLength(_ length: UInt64) async throws(Errno) {
    bytes = Array(bytes.prefix(Int(length)))
    bytes += Array(repeating: 0, count: Int(length) - bytes.count)
  }
}
