import QCOW2Codec
import Testing

@Suite struct CompressionKindTests {
  @Test func rawValuesAreThoseOfTheHeader() {
    #expect(CompressionKind(rawValue: 0) == .zlib)
    #expect(CompressionKind(rawValue: 1) == .zstd)
    #expect(CompressionKind(rawValue: 2) == nil)
  }
}
