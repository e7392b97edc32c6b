/// How the compressed clusters of an image are compressed; the raw value is the header's
/// `compression_type`.
///
/// Source: qcow2 specification, "compression_type".
public enum CompressionKind: UInt8, Sendable {
  /// Raw deflate, no zlib header, a window of 4 KiB or less when written by QEMU.
  case zlib = 0
  case zstd = 1
}
