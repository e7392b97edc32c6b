import BlockCore
import QCOW2Codec

/// What one worker keeps for transforming data: a codec, and clusters it has decompressed lately.
///
/// Touched by its own worker's thread only, in sections without a suspension.
final class WorkerContext {
  let codec: ClusterCodec
  let decompressed: DecompressedClusters
  /// Room for one compressed cluster on its way out.
  lazy var compressedOutput = IOBuffer(count: decompressed.clusterSize)

  init(_ kind: CompressionKind, clusterSize: Int) {
    codec = ClusterCodec(kind, clusterSize: clusterSize)
    decompressed = DecompressedClusters(clusterSize: clusterSize)
  }
}

/// The contexts of all workers; each is made when its worker first needs it.
@safe
final class WorkerContexts: @unchecked Sendable {  // why: a context is one thread's
  private let contexts: UnsafeMutablePointer<WorkerContext?>
  private let workers: Int
  private let kind: CompressionKind
  private let clusterSize: Int

  init(workers: Int, kind: CompressionKind, clusterSize: Int) {
    self.workers = workers
    self.kind = kind
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
    let context = WorkerContext(kind, clusterSize: clusterSize)
    unsafe contexts[worker] = context
    return context
  }
}
