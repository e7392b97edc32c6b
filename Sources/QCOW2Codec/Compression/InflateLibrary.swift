import CLibdeflate

/// What reads deflate streams.
package enum InflateLibrary: String, Sendable {
  /// Always there; decides what is a stream.
  case zlib
  /// Whole clusters in half the time, where it is installed.
  case libdeflate

  /// The fastest there is; the first use looks for libdeflate.
  ///
  /// Used when an image is opened, before a device is live: the library may lie on that very device.
  package static let best: InflateLibrary =
    qublk_libdeflate_is_available() != 0 ? .libdeflate : .zlib
}
