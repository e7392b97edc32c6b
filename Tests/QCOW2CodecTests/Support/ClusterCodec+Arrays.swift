import QCOW2Codec

extension ClusterCodec {
  /// Decompresses into a buffer of one cluster between guard bytes.
  func decompressed(_ source: [UInt8]) throws -> [UInt8] {
    let guarded = 64
    var memory = [UInt8](repeating: 0xa5, count: clusterSize + 2 * guarded)
    let result = memory.withUnsafeMutableBytes { memory in
      source.withUnsafeBytes { source in
        let target = UnsafeMutableRawBufferPointer(
          rebasing: memory[guarded..<(guarded + clusterSize)])
        return Result { () throws(CodecError) in try decompress(source, into: target) }
      }
    }
    precondition(memory.prefix(guarded).allSatisfy { $0 == 0xa5 }, "written before the target")
    precondition(memory.suffix(guarded).allSatisfy { $0 == 0xa5 }, "written past the target")
    try result.get()
    return Array(memory[guarded..<(guarded + clusterSize)])
  }

  /// Compresses into a buffer of one cluster.
  func compressed(_ source: [UInt8]) -> [UInt8]? {
    var target = [UInt8](repeating: 0, count: source.count)
    let count = target.withUnsafeMutableBytes { target in
      source.withUnsafeBytes { compress($0, into: target) }
    }
    return count.map { Array(target.prefix($0)) }
  }
}
