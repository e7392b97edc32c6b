/// Compresses and decompresses single clusters; one per worker.
///
/// Not thread-safe. Each direction sets up its tables on its first call and allocates nothing
/// after; a worker that only reads never pays for the tables of the compressor. Memory is bounded
/// whatever a stream says: at most 1 MiB for reading, since both decoders use the target as their
/// window.
///
/// Source: qcow2 specification, "Compressed Clusters Descriptor" and "compression_type".
package final class ClusterCodec {
  package let kind: CompressionKind
  /// In bytes.
  package let clusterSize: Int
  private let inflater: Inflater
  private let deflater = Deflater()
  private let zstdReader = ZstdReader()
  private let zstdWriter = ZstdWriter()

  /// What `inflate` names is asked first; zlib decides whatever it does not call a whole cluster.
  package init(
    _ kind: CompressionKind, clusterSize: Int, inflate: InflateLibrary = .best
  ) {
    self.kind = kind
    self.clusterSize = clusterSize
    inflater = Inflater(inflate)
  }

  /// Fills `target` with what `source` decompresses to.
  ///
  /// Bytes that are left in `source` are ignored: its length is rounded up to whole sectors, and
  /// the next compressed cluster may begin in the last of them. Deflate streams may go on after the
  /// cluster is full, zstd frames must end there; QEMU reads both the same way.
  ///
  /// - Parameters:
  ///   - source: The compressed bytes.
  ///   - target: One cluster; holds anything after an error.
  /// - Throws: ``CodecError`` of any kind.
  package func decompress(
    _ source: UnsafeRawBufferPointer, into target: UnsafeMutableRawBufferPointer
  ) throws(CodecError) {
    switch kind {
    case .zlib: try unsafe inflater.decompress(source, into: target)
    case .zstd: try unsafe zstdReader.decompress(source, into: target)
    }
  }

  /// Compresses the cluster `source` into `target`.
  ///
  /// - Returns: The number of bytes written; nil if they would not fit `target` or not be fewer
  ///   than those of the cluster, and the cluster is to be stored as it is.
  package func compress(
    _ source: UnsafeRawBufferPointer, into target: UnsafeMutableRawBufferPointer
  ) -> Int? {
    let room = min(target.count, source.count - 1)
    guard room > 0 else { return nil }
    let bounded = unsafe UnsafeMutableRawBufferPointer(rebasing: target[..<room])
    switch kind {
    case .zlib: return unsafe deflater.compress(source, into: bounded)
    case .zstd: return unsafe zstdWriter.compress(source, into: bounded)
    }
  }
}
