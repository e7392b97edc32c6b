import QCOW2Codec
import Testing

/// A codec as it runs where libdeflate is installed, or where it is not.
struct CodecUnderTest: CustomTestStringConvertible, Sendable {
  let kind: CompressionKind
  let inflate: InflateLibrary

  static let zlib = CodecUnderTest(kind: .zlib, inflate: .zlib)
  static let libdeflate = CodecUnderTest(kind: .zlib, inflate: .libdeflate)
  /// All that reads deflate on this machine.
  static let deflate = InflateLibrary.best == .libdeflate ? [zlib, libdeflate] : [zlib]
  static let all = deflate + [CodecUnderTest(kind: .zstd, inflate: .zlib)]

  func codec(_ clusterSize: Int) -> ClusterCodec {
    ClusterCodec(kind, clusterSize: clusterSize, inflate: inflate)
  }

  var testDescription: String { kind == .zstd ? "zstd" : inflate.rawValue }
}
