import Glibc
import QCOW2Codec
import TestTools
import Testing

@Suite struct CompressionTests {
  static let kinds: [CodecUnderTest] = CodecUnderTest.all

  /// Half noise, half repetition.
  static func mixed(_ count: Int, seed: UInt64) -> [UInt8] {
    var random = SeededGenerator(seed: seed)
    return random.bytes(count / 2) + [UInt8](repeating: 7, count: count - count / 2)
  }

  @Test(arguments: kinds, [9, 12, 16, 21])
  func aClusterComesBackAsItWas(kind: CodecUnderTest, bits: Int) throws {
    let codec = kind.codec(1 << bits)
    for seed in 1...3 as ClosedRange<UInt64> {
      let cluster = Self.mixed(1 << bits, seed: seed)
      let packed = try #require(codec.compressed(cluster))
      #expect(packed.count < cluster.count)
      #expect(try codec.decompressed(packed) == cluster)
    }
  }

  @Test(arguments: kinds)
  func noiseIsNotCompressed(kind: CodecUnderTest) {
    var random = SeededGenerator(seed: 5)
    let codec = kind.codec(65536)
    #expect(codec.compressed(random.bytes(65536)) == nil)
  }

  @Test(arguments: kinds)
  func aResultThatDoesNotFitTheTargetIsNone(kind: CodecUnderTest) throws {
    let cluster = Self.mixed(65536, seed: 9)
    let codec = kind.codec(65536)
    let size = try #require(codec.compressed(cluster)).count
    for (room, fits) in [(size + 512, true), (size - 1, false), (1, false), (0, false)] {
      var target = [UInt8](repeating: 0, count: room)
      let count = target.withUnsafeMutableBytes { target in
        cluster.withUnsafeBytes { codec.compress($0, into: target) }
      }
      #expect((count != nil) == fits)
    }
  }

  @Test(arguments: kinds)
  func whatFollowsTheStreamIsIgnored(kind: CodecUnderTest) throws {
    let cluster = Self.mixed(65536, seed: 2)
    let codec = kind.codec(65536)
    let packed = try #require(codec.compressed(cluster))
    var random = SeededGenerator(seed: 3)
    for tail in [[UInt8](repeating: 0, count: 511), random.bytes(300), packed] {
      #expect(try codec.decompressed(packed + tail) == cluster)
    }
  }

  @Test(arguments: kinds)
  func aStreamThatStopsEarlyIsRefusedAtEveryLength(kind: CodecUnderTest) throws {
    let cluster = Self.mixed(4096, seed: 4)
    let codec = kind.codec(4096)
    let packed = try #require(codec.compressed(cluster))
    // The last bytes of a deflate stream may hold no data any more.
    for length in 0..<(packed.count - 8) {
      #expect(throws: CodecError.self) { try codec.decompressed(Array(packed[..<length])) }
    }
    #expect(try codec.decompressed(packed) == cluster)
  }

  @Test(arguments: kinds)
  func aStreamOfTooLittleIsRefused(kind: CodecUnderTest) throws {
    let small = kind.codec(4096)
    let large = kind.codec(8192)
    let packed = try #require(small.compressed(Self.mixed(4096, seed: 6)))
    #expect(throws: CodecError.shortOutput(kind.kind, produced: 4096, expected: 8192)) {
      try large.decompressed(packed)
    }
  }

  @Test(arguments: CodecUnderTest.deflate)
  func aDeflateStreamOfTooMuchFillsTheCluster(kind: CodecUnderTest) throws {
    let cluster = Self.mixed(8192, seed: 7)
    let packed = try #require(kind.codec(8192).compressed(cluster))
    let small = kind.codec(4096)
    #expect(try small.decompressed(packed) == Array(cluster.prefix(4096)))
  }

  @Test func aZstdFrameOfTooMuchIsRefused() throws {
    let packed = try #require(
      ClusterCodec(.zstd, clusterSize: 8192).compressed(Self.mixed(8192, seed: 7)))
    let small = ClusterCodec(.zstd, clusterSize: 4096)
    #expect(throws: CodecError.self) { try small.decompressed(packed) }
  }

  @Test func zstdFramesAddUpToACluster() throws {
    let half = ClusterCodec(.zstd, clusterSize: 4096)
    let whole = ClusterCodec(.zstd, clusterSize: 8192)
    let (one, two) = (Self.mixed(4096, seed: 1), Self.mixed(4096, seed: 2))
    let packed = try #require(half.compressed(one)) + #require(half.compressed(two))
    #expect(try whole.decompressed(packed) == one + two)
    // A skippable frame between them adds nothing.
    let skipped = hex("502a4d18 03000000 010203")
    let frames =
      try #require(half.compressed(one)) + skipped + #require(half.compressed(two))
    #expect(try whole.decompressed(frames) == one + two)
  }

  @Test(arguments: CodecUnderTest.deflate)
  func deflateStreamsMayLookBack32KiB(kind: CodecUnderTest) throws {
    var random = SeededGenerator(seed: 8)
    let data = random.bytes(65536 - 258)
    var writer = DeflateWriter()
    writer.stored(Array(data.prefix(32768)), isLast: false)
    writer.stored(Array(data.dropFirst(32768)), isLast: false)
    writer.farthestMatch()
    let start = 65536 - 258 - 32768
    #expect(
      try kind.codec(65536).decompressed(writer.bytes)
        == data + data[start..<(start + 258)])
  }

  @Test(arguments: CodecUnderTest.deflate)
  func aDeflateMatchBeforeTheClusterIsRefused(kind: CodecUnderTest) throws {
    var writer = DeflateWriter()
    writer.stored([UInt8](repeating: 1, count: 4096 - 258), isLast: false)
    writer.farthestMatch()
    let codec = kind.codec(4096)
    #expect(throws: CodecError.corruptStream(.zlib, detail: "invalid distance too far back")) {
      try codec.decompressed(writer.bytes)
    }
  }

  @Test(arguments: kinds)
  func mutatedAndRandomStreamsNeverDoHarm(kind: CodecUnderTest) throws {
    let seed = testSeed("mutatedAndRandomStreams", fallback: .random(in: 1...999_999))
    var random = SeededGenerator(seed: seed)
    let codec = kind.codec(16384)
    let cluster = Self.mixed(16384, seed: seed)
    let packed = try #require(codec.compressed(cluster))
    for _ in 0..<3000 {
      var stream = packed
      for _ in 0..<Int.random(in: 1...4, using: &random) {
        let place = Int.random(in: 0..<min(stream.count, 200), using: &random)
        stream[place] = UInt8.random(in: 0...255, using: &random)
      }
      _ = try? codec.decompressed(stream)
      _ = try? codec.decompressed(random.bytes(Int.random(in: 0...600, using: &random)))
    }
    // What came before leaves nothing behind.
    #expect(try codec.decompressed(packed) == cluster)
  }
}
