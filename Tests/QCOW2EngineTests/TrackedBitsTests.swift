import Synchronization
import TestSupport
import TestTools
import Testing

@testable import QCOW2Engine

/// The bits of a bitmap in memory, bit by bit and on several threads.
@Suite struct TrackedBitsTests {
  @Test("Ranges become the same bits as in a set", arguments: 1...20 as ClosedRange<UInt64>)
  func rangesBecomeBits(seed: UInt64) throws {
    var random = SeededGenerator(seed: seed)
    let count = UInt64(1 + random.below(300))
    let own = try OwnBits(count: count, granularityBits: 9)
    defer { withExtendedLifetime(own) {} }
    let bits = own.bits
    var exact = Set<UInt64>()
    var durable = Set<UInt64>()
    for _ in 0..<60 {
      let first = UInt64(random.below(Int(count)))
      let range = first..<(first + 1 + UInt64(random.below(Int(count - first))))
      switch random.below(4) {
      case 0:
        bits.becameDurable(range)
        durable.formUnion(range)
      case 1:
        bits.dropExcess(0..<bits.words)
        durable.formIntersection(exact)
      default:
        var isNew = false
        let isDurable = bits.note(range, isNew: &isNew)
        #expect(isDurable == durable.isSuperset(of: range))
        #expect(isNew == !exact.isSuperset(of: range))
        exact.formUnion(range)
      }
      #expect(bits.isDurable(range) == durable.isSuperset(of: range))
      #expect(bits.exactBits(of: range).all == exact.isSuperset(of: range))
      #expect(bits.exactBits(of: range).any == !exact.isDisjoint(with: range))
      var bytes = [UInt8](repeating: 0, count: (bits.words + 2) * 8)
      bytes.withUnsafeMutableBytes {
        if let base = $0.baseAddress { bits.copy(0..<(bits.words + 2), to: base, adding: [range]) }
      }
      let expected = exact.union(durable).union(range)
      for bit in 0..<UInt64(bytes.count * 8) {
        let isSet = bytes[Int(bit / 8)] >> UInt8(bit % 8) & 1 == 1
        #expect(isSet == expected.contains(bit), "bit \(bit) of \(count)")
      }
    }
  }

  @Test("Bytes map to the bits that cover them")
  func bytesMapToBits() throws {
    let own = try OwnBits(count: 3, granularityBits: 12)
    defer { withExtendedLifetime(own) {} }
    let bits = own.bits
    #expect(bits.bits(0..<1) == 0..<1)
    #expect(bits.bits(4095..<4097) == 0..<2)
    #expect(bits.bits(4096..<8192) == 1..<2)
    #expect(bits.bits(8192..<UInt64.max) == 2..<3)
    #expect(bits.bits(20000..<20001).isEmpty)
  }

  /// What two threads share in one round.
  private final class Race: @unchecked Sendable {  // why: each thread has its own variable
    private let own: OwnBits
    var bits: TrackedBits { own.bits }
    let ready = Atomic<Int>(0)
    var relied: [UInt64] = []
    var written = [UInt8](repeating: 0, count: 512)

    init() throws { own = try OwnBits(count: 4096, granularityBits: 9) }

    func meet() {
      ready.wrappingAdd(1, ordering: .sequentiallyConsistent)
      while ready.load(ordering: .sequentiallyConsistent) < 2 {}
    }

    func note() {
      meet()
      for bit in 0..<4096 as Range<UInt64> {
        var isNew = false
        if bits.note(bit..<(bit + 1), isNew: &isNew) { relied.append(bit) }
      }
    }

    func clear(after turns: Int) {
      meet()
      for _ in 0..<turns { _ = ready.load(ordering: .sequentiallyConsistent) }
      bits.dropExcess(0..<64)
      written.withUnsafeMutableBytes {
        if let base = $0.baseAddress { bits.copy(0..<64, to: base, adding: []) }
      }
    }
  }

  @Test("A bit that a request relied on is in what is written when bits are cleared")
  func noBitIsLostBetweenThreads() async throws {
    let executors = (ThreadExecutor(), ThreadExecutor())
    for round in 0..<300 {
      let race = try Race()
      race.bits.becameDurable(0..<4096)
      let writer = Task(executorPreference: executors.0) { race.note() }
      let clearer = Task(executorPreference: executors.1) { race.clear(after: round % 7 * 200) }
      await writer.value
      await clearer.value
      for bit in race.relied {
        #expect(race.written[Int(bit / 8)] >> UInt8(bit % 8) & 1 == 1, "round \(round), bit \(bit)")
      }
    }
    executors.0.stop()
    executors.1.stop()
  }
}
