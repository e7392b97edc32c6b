import BlockCore
import DiskImages
import QCOW2Engine
import Testing

/// A raw disk tells of its failures as an image does.
@Suite struct RawEventTests {
  private func request(_ operation: BlockOperation, _ buffer: IOBuffer) -> BlockRequest {
    BlockRequest(
      operation, offset: GuestOffset(512), length: UInt64(buffer.count), data: buffer.data)
  }

  private func plans(_ target: RawTarget, _ request: BlockRequest) -> Bool {
    withUnsafeTemporaryAllocation(of: HostTransfer.self, capacity: 4) { plan in
      if case .transfers = target.plan(request, at: RequestSlot(worker: 0, number: 0), into: plan) {
        true
      } else {
        false
      }
    }
  }

  @Test func failuresAreReported() async {
    let file = BrokenFile()
    let events = ImageEvents()
    let object = HostObject(.image, path: "/raw")
    let target = RawTarget(file, length: 8192, reporter: EventReporter(events, object))
    let buffer = IOBuffer(count: 1024)
    file.failure = .io
    #expect(
      await target.serve(request(.read, buffer), at: RequestSlot(worker: 0, number: 0))
        == .failed(.io))
    #expect(
      await target.serve(request(.write, buffer), at: RequestSlot(worker: 0, number: 0))
        == .failed(.io))
    let read = events.summary[.readFailed]
    #expect(read.count == 1 && read.first?.object == object)
    #expect(read.first?.offset == HostOffset(512) && read.first?.length == 1024)
    #expect(events.summary[.writeFailed].count == 1)
    // A sync that fails is told once, however many flushes fail for it.
    for _ in 0..<3 {
      #expect(
        await target.serve(BlockRequest(.flush), at: RequestSlot(worker: 0, number: 0))
          == .failed(.io))
    }
    #expect(events.summary[.syncFailed].count == 1)
    #expect(
      await target.serve(
        BlockRequest(
          .read, offset: GuestOffset(8192), length: 512, data: buffer.data.slice(0, 512)),
        at: RequestSlot(worker: 0, number: 0)) == .failed(.invalid))
    #expect(events.summary[.readFailed].count == 1, "outside of the disk: nothing of the host's")
  }

  @Test func aLackOfSpaceEndsWithAWrite() async {
    let file = BrokenFile()
    let events = ImageEvents()
    let target = RawTarget(
      file, length: 8192, reporter: EventReporter(events, HostObject(.image, path: "/raw")))
    let buffer = IOBuffer(count: 512)
    #expect(plans(target, request(.write, buffer)))
    file.failure = .quota
    #expect(
      await target.serve(request(.write, buffer), at: RequestSlot(worker: 0, number: 0))
        == .failed(.noSpace))
    #expect(events.summary.lacksSpace && events.summary[.writeFailed].count == 0)
    #expect(!plans(target, request(.write, buffer)), "nobody would see the end")
    #expect(plans(target, request(.read, buffer)))
    file.failure = nil
    #expect(
      await target.serve(request(.write, buffer), at: RequestSlot(worker: 0, number: 0)) == .done)
    #expect(!events.summary.lacksSpace && events.summary[.spaceFound].count == 1)
    #expect(plans(target, request(.write, buffer)))
  }
}

/// A file of which every transfer fails, while it shall.
private final class BrokenFile: HostFile, @unchecked Sendable {  // why: one test at a time
  var failure: Errno?
  let traits = HostFileTraits()

  private func check() throws(Errno) { if let failure { throw failure } }

  func read(into buffer: DataBuffer, at offset: HostOffset) async throws(Errno) { try check() }
  func write(from buffer: DataBuffer, at offset: HostOffset) async throws(Errno) { try check() }
  func writeZeroes(at offset: HostOffset, length: UInt64) async throws(Errno) { try check() }
  func punchHole(at offset: HostOffset, length: UInt64) async throws(Errno) { try check() }
  func sync() async throws(Errno) { try check() }
  func length() async throws(Errno) -> UInt64 { 8192 }
  func setLength(_ length: UInt64) async throws(Errno) { try check() }
  func extend(to length: UInt64) async throws(Errno) { try check() }
}
