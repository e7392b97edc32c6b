import BlockCore

/// What each worker has reserved and not taken, as it outlives the process: see ``WorkerArenas``.
///
/// Each worker has a cache line, of which two words are the run in use and the one that follows. A word
/// is a whole run, so that each change is one store:
/// - Clusters leave it before anyone uses them, and enter it after their refcounts are 1. A death in
///   between leaks them.
/// - The run that follows becomes the one in use by two stores, the new place first. In between it stands
///   in both words, and counts once.
@safe
struct ArenaRecords: Sendable {
  static let stride = 64
  /// A word has the number of clusters in these bits, and the first cluster, less than 2^47, above.
  static let countBits: UInt64 = 17

  private let memory: MetadataMemory
  private let region: MetadataRegion

  /// - Throws: ``ImageError/noMemory(bytes:)``.
  init(workers: Int, in memory: MetadataMemory) throws(ImageError) {
    self.memory = memory
    region = try memory.region(.arenas, elementSize: Self.stride, count: workers)
  }

  /// The words of one worker; valid as long as these records are.
  func record(of worker: Int) -> ArenaRecord {
    unsafe ArenaRecord(
      region.values(UInt64.self, at: worker * Self.stride, count: 2), region)
  }
}

/// The two words of one worker; guarded by his arena's lock.
@safe
struct ArenaRecord: @unchecked Sendable {  // why: see above
  private let words: UnsafeMutablePointer<UInt64>
  #if DEBUG
    private let region: MetadataRegion
  #endif

  init(_ words: UnsafeMutablePointer<UInt64>, _ region: MetadataRegion) {
    unsafe self.words = unsafe words
    #if DEBUG
      self.region = region
    #endif
  }

  /// Stores the run in use.
  @inline(__always) func setRun(_ run: ClusterRun) { store(run, 0) }

  /// Stores the run that follows.
  @inline(__always) func setNext(_ run: ClusterRun) { store(run, 1) }

  @inline(__always) private func store(_ run: ClusterRun, _ index: Int) {
    assert(run.count >> ArenaRecords.countBits == 0 && run.start.number >> 47 == 0)
    MetadataMemory.orderStores()
    unsafe words[index] = run.start.number &<< ArenaRecords.countBits | run.count
    MetadataMemory.orderStores()
    #if DEBUG
      region.noteStore()
    #endif
  }
}
