import BlockCore

/// The clusters that one worker has decompressed last, and those that it is about to.
///
/// The key is the place of the compressed bytes and a generation: the image's generation changes
/// before the place of any released compressed cluster can be used anew. A reader draws it when it has
/// found the place in the mapping and holds it by its stamp. A match then means that nothing was
/// released since another reader held the same place: the bytes are those that the mapping points at.
/// Drawn any earlier, the generation could be from before the release, and the place from after it.
///
/// Requests that find their cluster being loaded wait for that, and then look for it themselves: a load
/// answers for nobody but who began it.
final class DecompressedClusters {
  /// Enough for a stream of small requests at depth 128, which is spread over several clusters.
  private static let bytes = 1 << 20
  private let capacity: Int
  let clusterSize: Int
  private struct Entry {
    var offset: UInt64
    var generation: UInt64
    let bytes: IOBuffer
  }
  @safe
  private struct Load {
    let offset: UInt64
    var waiters: [UnsafeContinuation<Void, Never>] = unsafe []
  }
  private var entries: [Entry] = []
  private var oldest = 0
  private var loads: [Load] = []

  init(clusterSize: Int) {
    self.clusterSize = clusterSize
    capacity = min(max(Self.bytes / clusterSize, 4), 64)
  }

  /// The cluster decompressed from `offset`; nil if it is not here.
  func find(_ offset: HostOffset, generation: UInt64) -> IOBuffer? {
    for entry in entries
    where entry.offset == offset.bytes && entry.generation == generation {
      return entry.bytes
    }
    return nil
  }

  /// Room for one more cluster, in place of the oldest; nothing until ``keep(_:generation:)``.
  func place() -> IOBuffer {
    if entries.count < capacity {
      entries.append(
        Entry(offset: .max, generation: .max, bytes: IOBuffer(count: clusterSize)))
      oldest = entries.count - 1
    } else {
      oldest = (oldest + 1) % capacity
      entries[oldest].offset = .max
    }
    return entries[oldest].bytes
  }

  /// Names what was put into ``place()``.
  func keep(_ offset: HostOffset, generation: UInt64) {
    entries[oldest].offset = offset.bytes
    entries[oldest].generation = generation
  }

  // MARK: Loads under way

  /// Waits until the load that runs for `offset` has ended.
  ///
  /// - Returns: false if none does.
  func waitForLoad(of offset: HostOffset) async -> Bool {
    guard let load = loads.firstIndex(where: { $0.offset == offset.bytes }) else { return false }
    unsafe await withUnsafeContinuation { continuation in
      unsafe loads[load].waiters.append(continuation)
    }
    return true
  }

  func beginLoad(of offset: HostOffset) { unsafe loads.append(Load(offset: offset.bytes)) }

  /// Whether someone waits for the load of `offset`.
  func isAwaited(_ offset: HostOffset) -> Bool {
    guard let load = loads.first(where: { $0.offset == offset.bytes }) else { return false }
    return unsafe !load.waiters.isEmpty
  }

  /// Ends a load, whatever came of it.
  func endLoad(of offset: HostOffset) {
    guard let load = loads.firstIndex(where: { $0.offset == offset.bytes }) else { return }
    let waiters = unsafe loads.remove(at: load).waiters
    unsafe waiters.forEach { unsafe $0.resume() }
  }
}
