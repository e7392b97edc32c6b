import BlockCore
import Glibc
import Testing

@testable import Uring

@Suite struct RingTests {
  @Test func `user data keeps kind, slot and part`() {
    for slot in [0, 1, 4095, Int(UInt32.max)] {
      for part in [0, 31, Int(UInt16.max)] {
        let data = UserData(.transfer, slot: slot, part: part)
        #expect(data.kind == .transfer && data.slot == slot && data.part == part)
        #expect(UserData(word: data.word) == data)
      }
    }
    #expect(UserData(word: 0xff << 56).kind == .ignored)
  }

  @Test func `a submission entry is laid out as the kernel reads it`() {
    #expect(MemoryLayout<SubmissionEntry>.size == 64)
    #expect(MemoryLayout<SubmissionEntry>.offset(of: \.fd) == 4)
    #expect(MemoryLayout<SubmissionEntry>.offset(of: \.offset) == 8)
    #expect(MemoryLayout<SubmissionEntry>.offset(of: \.address) == 16)
    #expect(MemoryLayout<SubmissionEntry>.offset(of: \.length) == 24)
    #expect(MemoryLayout<SubmissionEntry>.offset(of: \.operationFlags) == 28)
    #expect(MemoryLayout<SubmissionEntry>.offset(of: \.userData) == 32)
    #expect(MemoryLayout<SubmissionEntry>.offset(of: \.bufferIndex) == 40)
    #expect(MemoryLayout<SubmissionEntry>.offset(of: \.command) == 48)
  }

  /// The kernel refuses a completion queue that is smaller than the submission queue.
  @Test func `a ring that cannot be made leaves nothing behind, and frees nothing twice`() {
    for _ in 0..<100 {
      #expect(throws: Errno.invalid) { _ = try Ring(entries: 64, completions: 1).unsubmitted }
    }
  }

  private func pushNop(_ ring: borrowing Ring, slot: Int) {
    var entry = SubmissionEntry.nop
    entry.userData = UserData(.operation, slot: slot).word
    ring.push(entry)
  }

  @Test func `a full queue is submitted to make room`() throws {
    let ring = try Ring(entries: 8, completions: 1024)
    for index in 0..<500 { pushNop(ring, slot: index) }
    var seen: Set<Int> = []
    while seen.count < 500 {
      ring.enter(waitingFor: 1)
      ring.drain { data, result, _ in
        #expect(result == 0)
        seen.insert(data.slot)
      }
    }
    #expect(ring.unsubmitted == 0)
  }

  @Test func `what completed is handed out in turns of sixteen`() throws {
    let ring = try Ring(entries: 64, completions: 64)
    for index in 0..<40 { pushNop(ring, slot: index) }
    ring.enter(waitingFor: 40)
    var seen: [Int] = []
    // None is lost, and none has to be waited for.
    for count in [16, 16, 8, 0] {
      #expect(ring.drain { data, _, _ in seen.append(data.slot) } == count)
    }
    #expect(seen.sorted() == Array(0..<40))
  }

  @Test func `completions are delivered after the positions have wrapped many times`() throws {
    let ring = try Ring(entries: 2, completions: 4)
    for round in 0..<10_000 {
      pushNop(ring, slot: round)
      ring.enter(waitingFor: 1)
      var count = 0
      ring.drain { data, _, _ in
        count += 1
        #expect(data.slot == round)
      }
      #expect(count == 1)
    }
  }

  @Test func `registered files are read and written by slot`() throws {
    let file = try TemporaryFile()
    let ring = try Ring(entries: 8, completions: 16)
    try ring.registerSparseFiles(1)
    try ring.setFiles([file.descriptor], from: 0)
    let buffer = IOBuffer(count: 4096)
    buffer.base.initializeMemory(as: UInt8.self, repeating: 0x5a, count: 4096)
    #expect(run(ring, .write(.registered(0), from: buffer.data, at: 8192)) == 4096)
    let other = IOBuffer(count: 4096)
    #expect(run(ring, .read(.registered(0), into: other.data, at: 8192)) == 4096)
    #expect(memcmp(buffer.base, other.base, 4096) == 0)
    ring.unregisterFiles()
    #expect(run(ring, .read(.registered(0), into: other.data, at: 0)) == -EBADF)
  }

  private func run(_ ring: borrowing Ring, _ entry: SubmissionEntry) -> Int32 {
    ring.push(entry)
    var outcome: Int32?
    while outcome == nil {
      ring.enter(waitingFor: 1)
      ring.drain { _, result, _ in outcome = result }
    }
    return outcome ?? 0
  }

  @Test func `operation slots keep their addresses while the table grows`() async {
    var slots = OperationSlots()
    var addresses: [UnsafeMutablePointer<OperationSlots.Slot>] = []
    for expected in 0..<1000 {
      let hasRoom = slots.hasRoom()
      var index = -1
      let result: Int32 = await withUnsafeContinuation { continuation in
        index = slots.take(continuation)
        addresses.append(slots[index])
        slots.release(index)?.resume(returning: 5)
        _ = slots.take(continuation)  // stays taken; never resumed again
      }
      #expect(hasRoom && index == expected && result == 5)
    }
    let same = addresses.indices.allSatisfy { slots[$0] == addresses[$0] }
    let inFlight = slots.inFlight
    #expect(same && inFlight == 1000)
  }
}
