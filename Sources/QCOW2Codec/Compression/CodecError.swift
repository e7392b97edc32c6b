/// Why a compressed cluster could not be read.
public enum CodecError: Error, Equatable, Sendable {
  /// The stream breaks its own rules, or ends in the middle; `detail` is the library's word for it.
  case corruptStream(CompressionKind, detail: String)
  /// The stream ends before the cluster is full; both in bytes.
  case shortOutput(CompressionKind, produced: Int, expected: Int)
  /// The library found no memory for its tables.
  case outOfMemory(CompressionKind)
}
