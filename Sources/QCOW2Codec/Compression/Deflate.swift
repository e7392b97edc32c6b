import CLibdeflate
import CZlib

/// A zlib state at a fixed address, as zlib's own pointer back to it needs.
@safe private struct ZlibStream {
  let pointer: UnsafeMutablePointer<z_stream>

  init() {
    unsafe pointer = .allocate(capacity: 1)
    unsafe pointer.initialize(to: z_stream())
  }

  /// Points the stream at its input and output.
  ///
  /// - Returns: Whether both counts fit zlib's 32 bits.
  func aim(_ source: UnsafeRawBufferPointer, _ target: UnsafeMutableRawBufferPointer) -> Bool {
    guard let input = UInt32(exactly: source.count), let output = UInt32(exactly: target.count),
      let from = source.baseAddress, let to = target.baseAddress
    else { return false }
    // zlib never writes to its input; its type says so only if it is built with ZLIB_CONST.
    unsafe pointer.pointee.next_in = UnsafeMutablePointer(
      mutating: from.assumingMemoryBound(to: UInt8.self))
    unsafe pointer.pointee.avail_in = input
    unsafe pointer.pointee.next_out = to.assumingMemoryBound(to: UInt8.self)
    unsafe pointer.pointee.avail_out = output
    return true
  }

  /// Forgets input and output, which the caller takes back.
  func release() {
    unsafe pointer.pointee.next_in = nil
    unsafe pointer.pointee.next_out = nil
  }

  var message: String? { unsafe pointer.pointee.msg.map { unsafe String(cString: $0) } }
}

/// Libraries that are looked for at their first use.
package enum CodecLibraries {
  /// Loads them now: a process in a sandbox cannot do so later.
  package static func load() { _ = qublk_libdeflate_is_available() }
}

/// Reads raw deflate streams of any window size.
///
/// zlib decides whether bytes are a stream. libdeflate is tried first, since it is twice as fast; if it
/// does not find a whole stream of exactly a cluster, zlib inflates the bytes again.
@safe final class Inflater {
  private let stream = ZlibStream()
  private var isReady = false
  private var libdeflate: UnsafeMutableRawPointer?
  private var mayUseLibdeflate: Bool
  /// 32 KiB, the largest there is; negative: no zlib header and no checksum.
  private static let windowBits: Int32 = -15

  init(_ library: InflateLibrary) { mayUseLibdeflate = library == .libdeflate }

  deinit {
    if let libdeflate = unsafe libdeflate { unsafe qublk_libdeflate_free(libdeflate) }
    if isReady { unsafe inflateEnd(stream.pointer) }
    unsafe stream.pointer.deallocate()
  }

  /// See ``ClusterCodec/decompress(_:into:)``.
  func decompress(
    _ source: UnsafeRawBufferPointer, into target: UnsafeMutableRawBufferPointer
  ) throws(CodecError) {
    if unsafe mayUseLibdeflate && fill(target, from: source) { return }
    try unsafe decompressByZlib(source, into: target)
  }

  /// Whether libdeflate has filled the target; all else is left to zlib.
  private func fill(
    _ target: UnsafeMutableRawBufferPointer, from source: UnsafeRawBufferPointer
  ) -> Bool {
    if unsafe libdeflate == nil {
      unsafe libdeflate = qublk_libdeflate_make()
      mayUseLibdeflate = unsafe libdeflate != nil
    }
    guard let libdeflate = unsafe libdeflate, let from = source.baseAddress,
      let to = target.baseAddress
    else { return false }
    return unsafe qublk_libdeflate_fill(libdeflate, from, source.count, to, target.count) != 0
  }

  private func decompressByZlib(
    _ source: UnsafeRawBufferPointer, into target: UnsafeMutableRawBufferPointer
  ) throws(CodecError) {
    try reset()
    guard unsafe stream.aim(source, target) else {
      throw .shortOutput(.zlib, produced: 0, expected: target.count)
    }
    defer { stream.release() }
    let result = unsafe inflate(stream.pointer, Z_FINISH)
    let left = Int(unsafe stream.pointer.pointee.avail_out)
    switch result {
    case Z_STREAM_END, Z_BUF_ERROR, Z_OK:
      // Out of output is the end that is wanted, out of input is none.
      guard left == 0 else {
        throw .shortOutput(.zlib, produced: target.count - left, expected: target.count)
      }
    case Z_MEM_ERROR: throw .outOfMemory(.zlib)
    default: throw .corruptStream(.zlib, detail: stream.message ?? "code \(result)")
    }
  }

  private func reset() throws(CodecError) {
    if isReady, unsafe inflateReset(stream.pointer) == Z_OK { return }
    precondition(!isReady, "an inflate state that cannot be reset")
    let size = unsafe Int32(MemoryLayout<z_stream>.size)
    guard unsafe inflateInit2_(stream.pointer, Self.windowBits, zlibVersion(), size) == Z_OK
    else { throw .outOfMemory(.zlib) }
    isReady = true
  }
}

/// Writes raw deflate streams.
final class Deflater {
  private let stream = ZlibStream()
  private lazy var incompressible = Incompressible()
  private var isReady = false
  /// 4 KiB, as QEMU writes: its readers up to now look no further back.
  private static let windowBits: Int32 = -12
  /// QEMU has 6, the library's default: 5 takes a fifth less time, and 1 % more room.
  private static let level: Int32 = 5
  /// The largest: a fast match table for some 256 KiB.
  private static let memoryLevel: Int32 = 9

  deinit {
    if isReady { unsafe deflateEnd(stream.pointer) }
    unsafe stream.pointer.deallocate()
  }

  /// See ``ClusterCodec/compress(_:into:)``.
  func compress(
    _ source: UnsafeRawBufferPointer, into target: UnsafeMutableRawBufferPointer
  ) -> Int? {
    if unsafe incompressible.isIncompressible(source) { return nil }
    guard reset(), unsafe stream.aim(source, target) else { return nil }
    defer { stream.release() }
    guard unsafe deflate(stream.pointer, Z_FINISH) == Z_STREAM_END else { return nil }
    return target.count - Int(unsafe stream.pointer.pointee.avail_out)
  }

  private func reset() -> Bool {
    if isReady { return unsafe deflateReset(stream.pointer) == Z_OK }
    isReady =
      unsafe deflateInit2_(
        stream.pointer, Self.level, Z_DEFLATED, Self.windowBits, Self.memoryLevel,
        Z_DEFAULT_STRATEGY, zlibVersion(), Int32(MemoryLayout<z_stream>.size)) == Z_OK
    return isReady
  }
}
