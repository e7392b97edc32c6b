/// Reads the header cluster of an image in two steps: how long a cluster is, then all of it.
///
/// Does no I/O: until ``take(_:)`` returns the cluster, the caller reads the first ``wanted`` bytes
/// of the file and gives them to it.
public struct HeaderClusterReader {
  /// The number of bytes to read next, from the start of the file; at most a cluster.
  public private(set) var wanted = HeaderCluster.startLength
  private let fileLength: UInt64
  private var isSizeKnown = false

  public init(fileLength: UInt64) { self.fileLength = fileLength }

  /// Takes the bytes that were wanted; those beyond the end of the file as zeros.
  ///
  /// - Returns: The cluster; nil if more bytes are wanted.
  /// - Throws: Whatever makes an image useless for readers, too.
  public mutating func take(_ bytes: Span<UInt8>) throws(FormatError) -> HeaderCluster? {
    if isSizeKnown { return try HeaderCluster(parsing: bytes, fileLength: fileLength) }
    wanted = try HeaderCluster.size(start: bytes, fileLength: fileLength)
    isSizeKnown = true
    return nil
  }
}
