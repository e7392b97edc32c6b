import BlockCore
import QCOW2Codec

/// What one worker keeps for transforming data: a codec, and clusters it has decompressed lately.
///
/// Touched by its own worker's thread only, in sections without a suspension.
@safe
final class WorkerContext {
  let codec: ClusterCodec
  let decompressed: DecompressedClusters
  /// Room for one compressed cluster on its way out.
  lazy var compressedOutput = IOBuffer(count: decompressed.clusterSize)

  /// Buffers for compressed bytes, to be used again.
  private var inputs: [IOBuffer] = []
  private let inputBytes: Int
  private static let inputLimit = 32
  /// Bytes of the buffers that are out, and those who wait for some to come back.
  private var bytesOut = 0
  private var waiters: [UnsafeContinuation<Void, Never>] = unsafe []
  /// 128 requests for clusters of 64 KiB never wait; some for clusters of 2 MiB do.
  private static let bytesOutLimit = 32 << 20

  init(_ kind: CompressionKind, clusterSize: Int, inflate: InflateLibrary) {
    // What most compressed clusters need at most; longer ones, which the format permits, are rare.
    inputBytes = clusterSize + 8192
    codec = ClusterCodec(kind, clusterSize: clusterSize, inflate: inflate)
    decompressed = DecompressedClusters(clusterSize: clusterSize)
  }

  /// A buffer of `count` bytes or more, with any contents; waits while too much is out.
  ///
  /// Not zeroed: most clusters need a third of it, and the rest then takes no memory.
  func takeInput(_ count: Int) async -> IOBuffer {
    let size = max(count, inputBytes)
    while bytesOut > 0 && bytesOut + size > Self.bytesOutLimit {
      unsafe await withUnsafeContinuation { continuation in
        unsafe waiters.append(continuation)
      }
    }
    bytesOut += size
    if size > inputBytes { return IOBuffer(unfilled: size) }
    return inputs.popLast() ?? IOBuffer(unfilled: size)
  }

  /// Takes a buffer back when nothing is read into it any more.
  func giveInput(_ buffer: IOBuffer) {
    bytesOut -= buffer.count
    if unsafe !waiters.isEmpty {
      // Each looks again for itself.
      let woken = unsafe waiters
      unsafe waiters = unsafe []
      unsafe woken.forEach { unsafe $0.resume() }
    }
    guard buffer.count == inputBytes, inputs.count < Self.inputLimit, inputBytes <= 128 << 10
    else { return }
    inputs.append(buffer)
  }
}

/// The contexts of all workers; each is made when its worker first needs it.
@safe
final class WorkerContexts: @unchecked Sendable {  // why: a context is one thread's
  private let contexts: UnsafeMutablePointer<WorkerContext?>
  private let workers: Int
  private let kind: CompressionKind
  private let clusterSize: Int
  private let inflate: InflateLibrary

  init(workers: Int, kind: CompressionKind, clusterSize: Int) {
    self.workers = workers
    self.kind = kind
    // Looked for when the image is opened, not when its first compressed cluster is read.
    inflate = kind == .zlib ? .best : .zlib
    self.clusterSize = clusterSize
    unsafe contexts = .allocate(capacity: workers)
    unsafe contexts.initialize(repeating: nil, count: workers)
  }

  deinit {
    unsafe contexts.deinitialize(count: workers)
    unsafe contexts.deallocate()
  }

  func context(_ worker: Int) -> WorkerContext {
    // A backing layer is asked with its overlay's worker numbers and must have as many.
    precondition(worker < workers, "worker \(worker) of \(workers)")
    if let context = unsafe contexts[worker] { return context }
    let context = WorkerContext(kind, clusterSize: clusterSize, inflate: inflate)
    unsafe contexts[worker] = context
    return context
  }
}
