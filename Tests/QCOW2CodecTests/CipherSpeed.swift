import Glibc
import TestTools
import Testing

@testable import QCOW2Codec

/// Figures, not a judgement: `QUBLK_BENCH=1 swift test -c release --filter CipherSpeed`.
@Suite(.enabled(if: getenv("QUBLK_BENCH") != nil, "set QUBLK_BENCH to measure"), .serialized)
struct CipherSpeed {
  @Test(arguments: [CipherMode.xts, .cbc], [4096, 65536])
  func megabytesPerSecond(mode: CipherMode, length: Int) async throws {
    let suite = CipherSuite(.aes256, mode, .plain64)
    var random = SeededGenerator(seed: 1)
    let transform = try SectorTransform(suite, key: Secret(random.bytes(suite.keyLength)))
    for threads in [1, 2, 4] {
      let start = ContinuousClock.now
      let bytes = await withTaskGroup(of: Int.self) { group in
        for _ in 0..<threads {
          group.addTask {
            let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: length, alignment: 4096)
            defer { buffer.deallocate() }
            guard let base = buffer.baseAddress else { return 0 }
            buffer.initializeMemory(as: UInt8.self, repeating: 1)
            let turns = (256 << 20) / length
            for turn in 0..<turns {
              transform.run(
                .decrypt, base, into: base, count: length, firstSector: UInt64(turn))
            }
            return turns * length
          }
        }
        return await group.reduce(0, +)
      }
      let elapsed = ContinuousClock.now - start
      let seconds =
        Double(elapsed.components.attoseconds) / 1e18 + Double(elapsed.components.seconds)
      print(
        "aes256-\(mode) \(length) B, \(threads) threads: \(Int(Double(bytes) / 1e6 / seconds)) MB/s"
      )
    }
  }
}
