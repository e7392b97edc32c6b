import BlockCore
import Testing

@testable import Ublk

@Suite struct CommitAnswerTests {
  private func answer(_ result: Int32, count: Int = 4, elementBytes: Int = 8) -> CommitAnswer {
    CommitAnswer(result: result, count: count, elementBytes: elementBytes)
  }

  @Test func `the driver takes all of a batch, or says how many bytes it took`() {
    for bytes in [8, 16] {
      for count in 1...4 {
        #expect(answer(Int32(count * bytes), count: count, elementBytes: bytes) == .whole)
        for taken in 1..<count {
          #expect(
            answer(Int32(taken * bytes), count: count, elementBytes: bytes)
              == .partial(taken: taken))
        }
      }
    }
    // A part of an element is none of it; more than there is, is all.
    #expect(answer(15) == .partial(taken: 1))
    #expect(answer(.max) == .whole)
  }

  @Test func `nothing taken without a reason is tried again`() {
    #expect(answer(0) == .later(.io))
    #expect(answer(7) == .later(.io))
  }

  @Test func `EBUSY is about the first element, whose request the driver does not await`() {
    #expect(answer(-16) == .notOurs)
  }

  @Test(arguments: [4, 11, 12, 105] as [Int32])
  func `a shortage passes`(_ code: Int32) { #expect(answer(-code) == .later(Errno(code))) }

  @Test(arguments: [1, 5, 7, 14, 19, 22, 95, 125] as [Int32])
  func `any other refusal is for good`(_ code: Int32) {
    #expect(answer(-code) == .refused(Errno(code)))
  }
}

@Suite struct CommandBatchTests {
  @Test(arguments: [false, true])
  func `elements come out as they were put in`(_ hasAddresses: Bool) throws {
    var batch = CommandBatch(depth: 5, hasAddresses: hasAddresses)
    let nothing = batch.close()
    #expect(nothing == nil)
    for tag in [4, 0, 3] {
      let hasRoom = batch.append(tag, result: Int32(-tag), address: UInt64(tag) << 12)
      #expect(hasRoom)
    }
    let closed = batch.close()
    let (index, elements, count) = try #require(closed)
    #expect(count == 3)
    let (size, held) = (batch.elementBytes, batch.count(index))
    #expect(size == (hasAddresses ? 16 : 8) && held == 3)
    for (place, tag) in [4, 0, 3].enumerated() {
      let element = batch.element(index, place)
      #expect(element == (tag, Int32(-tag)))
      let raw = try #require(UnsafeRawPointer(bitPattern: UInt(elements) + UInt(place * size)))
      // The tag is also the number of the buffer.
      #expect(raw.loadUnaligned(as: UInt32.self) == UInt32(tag) << 16 | UInt32(tag))
      if hasAddresses {
        #expect(raw.loadUnaligned(fromByteOffset: 8, as: UInt64.self) == UInt64(tag) << 12)
      }
    }
  }

  @Test func `an array is not touched until its command has completed`() throws {
    var batch = CommandBatch(depth: 2, hasAddresses: false)
    var sent: [Int] = []
    for tag in 0..<4 {
      _ = batch.append(tag % 2, result: Int32(tag), address: 0)
      let closed = batch.close()
      sent.append(try #require(closed).index)
    }
    #expect(Set(sent).count == 4)
    for (tag, index) in sent.enumerated() {
      let element = batch.element(index, 0)
      #expect(element == (tag % 2, Int32(tag)))
    }
    batch.release(sent[2])
    _ = batch.append(1, result: 9, address: 0)
    let (current, count, other) = (batch.current, batch.count(sent[2]), batch.element(sent[3], 0))
    #expect(current == sent[2] && count == 1 && other == (1, 3))
  }

  @Test func `there is room for each tag once, and no more`() {
    var batch = CommandBatch(depth: 3, hasAddresses: false)
    for tag in 0..<3 {
      let hasRoom = batch.append(tag, result: 0, address: 0)
      #expect(hasRoom)
    }
    let hasRoom = batch.append(0, result: 0, address: 0)
    let closed = batch.close()
    #expect(!hasRoom && closed?.count == 3)
  }
}
