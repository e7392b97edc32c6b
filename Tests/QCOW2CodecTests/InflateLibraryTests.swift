import Glibc
import QCOW2Codec
import TestTools
import Testing

/// libdeflate beside zlib: what a cluster reads as does not depend on which is installed.
@Suite(.enabled(if: InflateLibrary.best == .libdeflate, "needs libdeflate.so.0 (libdeflate0)"))
struct InflateLibraryTests {
  private static let size = 16384
  private let zlib = CodecUnderTest.zlib.codec(size)
  private let libdeflate = CodecUnderTest.libdeflate.codec(size)

  private struct Counts {
    var read = 0
    var refused = 0
    var readByOne = 0
  }

  /// Reads a stream both ways: alike, but for what only libdeflate takes for a stream.
  private func compare(_ stream: [UInt8], _ counts: inout Counts) {
    let one = Result { () throws in try zlib.decompressed(stream) }
    let other = Result { () throws in try libdeflate.decompressed(stream) }
    switch (one, other) {
    case (.success(let one), .success(let other)):
      #expect(one == other)
      counts.read += 1
    case (.failure(let one), .failure(let other)):
      #expect(one as? CodecError == other as? CodecError)
      counts.refused += 1
    case (.success, .failure(let error)): Issue.record("zlib reads it: \(error)")
    case (.failure, .success): counts.readByOne += 1
    }
  }

  /// A cluster of text and runs, which makes blocks of all kinds.
  private func cluster(_ random: inout SeededGenerator) -> [UInt8] {
    var bytes: [UInt8] = []
    while bytes.count < Self.size {
      switch Int.random(in: 0...3, using: &random) {
      case 0: bytes += random.bytes(Int.random(in: 1...900, using: &random))
      case 1:
        bytes += [UInt8](
          repeating: UInt8.random(in: 0...255, using: &random),
          count: Int.random(in: 1...900, using: &random))
      case 2: bytes += bytes.suffix(Int.random(in: 0...5000, using: &random))
      default: bytes += random.bytes(200).map { $0 & 15 | 96 }
      }
    }
    return Array(bytes.prefix(Self.size))
  }

  @Test func whatZlibReadsIsReadTheSameAndWhatItRefusesIsRefused() throws {
    let seed = testSeed("whatZlibReads", fallback: .random(in: 1...999_999))
    var random = SeededGenerator(seed: seed)
    var whole = Counts()
    var mutated = Counts()
    for _ in 0..<60 {
      guard let packed = zlib.compressed(cluster(&random)) else { continue }
      compare(packed, &whole)
      compare(packed + random.bytes(400), &whole)
      for _ in 0..<60 {
        var stream = packed
        for _ in 0..<Int.random(in: 1...3, using: &random) {
          // Half of them where the first block's codes are described.
          let end = Bool.random(using: &random) ? min(stream.count, 100) : stream.count
          stream[Int.random(in: 0..<end, using: &random)] ^=
            1 << UInt8.random(in: 0...7, using: &random)
        }
        compare(stream, &mutated)
        compare(Array(packed.prefix(Int.random(in: 0..<packed.count, using: &random))), &mutated)
        compare(random.bytes(Int.random(in: 0...600, using: &random)), &mutated)
      }
    }
    #expect(whole.read > 60 && whole.refused == 0 && whole.readByOne == 0)
    #expect(mutated.read > 0 && mutated.refused > 0)
    // libdeflate knows fewer reasons to refuse what is no stream: decision 0014.
    let total = mutated.read + mutated.refused + mutated.readByOne
    #expect(mutated.readByOne <= total / 1000)
  }

  @Test func aFullClusterNeedsNoEndOfItsStream() throws {
    var random = SeededGenerator(seed: 3)
    let cluster = random.bytes(Self.size)
    var writer = DeflateWriter()
    writer.stored(cluster, isLast: false)
    #expect(try zlib.decompressed(writer.bytes) == cluster)
    #expect(try libdeflate.decompressed(writer.bytes) == cluster)
    // What follows is garbage, the end of another cluster say.
    #expect(try libdeflate.decompressed(writer.bytes + random.bytes(100)) == cluster)
  }

  @Test func aStreamThatEndsShortOrGoesOnIsZlibsToDecide() throws {
    var random = SeededGenerator(seed: 4)
    for size in [Self.size - 1, Self.size + 1, 2 * Self.size] {
      let bytes = random.bytes(size)
      var writer = DeflateWriter()
      for start in stride(from: 0, to: size, by: 10000) {
        writer.stored(Array(bytes[start..<min(start + 10000, size)]), isLast: start + 10000 >= size)
      }
      if size < Self.size {
        let error = CodecError.shortOutput(.zlib, produced: size, expected: Self.size)
        #expect(throws: error) { try zlib.decompressed(writer.bytes) }
        #expect(throws: error) { try libdeflate.decompressed(writer.bytes) }
      } else {
        #expect(try zlib.decompressed(writer.bytes) == Array(bytes.prefix(Self.size)))
        #expect(try libdeflate.decompressed(writer.bytes) == Array(bytes.prefix(Self.size)))
      }
    }
  }
}
