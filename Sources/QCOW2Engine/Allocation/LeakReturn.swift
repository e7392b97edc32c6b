package import BlockCore
import QCOW2Format
import Synchronization

/// A host cluster with a higher refcount than anything accounts for.
package struct LeakedCluster: Equatable, Sendable {
  /// Which one.
  package var cluster: HostCluster
  /// What is counted.
  package var refcount: UInt64
  /// How many references there are.
  package var references: UInt64

  /// A suspect.
  package init(cluster: HostCluster, refcount: UInt64, references: UInt64) {
    self.cluster = cluster
    self.refcount = refcount
    self.references = references
  }
}

/// What a look for leaks may say of a cluster.
package enum LeakStanding: Sendable {
  /// Its references are those from when the look began; true for the moment.
  case constant
  /// References have come or gone. If more are counted than there are, the next look will tell.
  case changed
  /// It was reserved or has become free since, so it is no leak from before.
  case past
}

/// What a crash has left reserved goes back while guests go on.
///
///     look begins, at rest | all is written back | references and refcounts are read beside requests
///     | who has removed a pointer has noted it | refcounts go down
///
/// The reading is the caller's: this module has no check. See ``LeakWatch`` for what makes it safe. A crash
/// leaves what was not yet given back, or not yet written back, as leaked as before.
extension Image {
  private var watch: LeakWatch { supply.frees.watch }

  /// Runs `body` when no request is in flight and no operation on the whole image is under way: nobody has a
  /// reference in hand that is neither in a table nor in what `body` gets.
  ///
  /// Requests are kept out only while those in flight end.
  ///
  /// - Parameter body: Gets host clusters with references that no table shows: those of arenas and of the
  ///   packer, and what has lost its pointer and not yet its refcount.
  /// - Returns: What `body` returns.
  func atRest<R>(
    _ body: (_ reserved: [Range<HostCluster>], _ freed: [Range<HostCluster>]) -> R
  ) async -> R {
    await snapshotting.acquire()
    defer { snapshotting.release() }
    await administration.acquire()
    defer { administration.release() }
    await exclusion.acquire()
    defer { exclusion.release() }
    await gate.close(stamps)
    defer { gate.open() }
    await changes?.mutex.acquire()
    defer { changes?.mutex.release() }
    let packed = await supply.packer.reserved()
    await supply.allocator.mutex.acquire()
    defer { supply.allocator.mutex.release() }
    return body(supply.untaken + [packed], supply.freed)
  }

  /// Begins a look for leaked clusters; when it returns, the host file has every reference from before.
  ///
  /// One look at a time. See ``standing(of:)``.
  ///
  /// - Throws: ``ImageError/readOnly``, ``ImageError/writesStopped``, ``ImageError/noMemory(bytes:)``, or why
  ///   nothing could be written back; no look is under way then.
  package func beginLeakLook() async throws(ImageError) {
    if options.readOnly { throw .readOnly }
    try health.requireWrites()
    // A refcount may have become durable, and the length of the file that goes with it not.
    let length = try await reader.storage.length() + Self.mostLeftBehind
    try watch.prepare(HostCluster(geometry.clusters(covering: length)))
    await supply.returnMatureIfIdle()
    await atRest { watch.begin(reserved: $0, freed: $1) }
    do throws(ImageError) { try await durability.flusher.flush() } catch {
      watch.end()
      throw error
    }
  }

  /// What a look may say of a cluster; any thread may ask.
  package func standing(of cluster: HostCluster) -> LeakStanding {
    if !watch.knows(cluster) { return .constant }
    return watch.isPast(cluster) ? .past : .changed
  }

  /// Says which suspects of a look are leaked, for good: nothing will ever refer to them.
  ///
  /// - Parameters:
  ///   - suspects: With what was read since ``beginLeakLook()``.
  ///   - isTable: Whether a cluster was read as metadata, or may have been.
  /// - Returns: Nil if a table was perhaps not read as it was: then the look has shown nothing.
  package func judgeLeaks(
    _ suspects: [LeakedCluster], isTable: (HostCluster) -> Bool
  ) async -> [LeakedCluster]? {
    guard await allHaveNoted(), watch.firstFree(where: isTable) == nil else { return nil }
    return suspects.filter { !watch.knows($0.cluster) }
  }

  /// Waits until everybody who may have removed a pointer before this call has noted what it led to.
  ///
  /// - Returns: False if the task was cancelled first.
  private func allHaveNoted() async -> Bool {
    do { try await quiesce() } catch { return false }
    // Operations on the whole image have no stamp all the time; each holds one of these.
    for mutex in [snapshotting, administration, exclusion, changes?.mutex, supply.allocator.mutex] {
      await mutex?.acquire()
      mutex?.release()
    }
    return true
  }

  /// Ends the look; what ``returnLeaks(_:)`` has not been given stays leaked.
  package func endLeakLook() { watch.end() }

  /// Lowers the refcounts of clusters that ``judgeLeaks(_:isTable:)`` has named in this look, and that nothing
  /// refers to; punches them first, if discards do.
  ///
  /// Call with some hundred at a time: the allocator is held for each slice of refcounts.
  ///
  /// - Returns: Those that were lowered; others have changed since.
  package func returnLeaks(
    _ leaks: [LeakedCluster]
  ) async throws(ImageError) -> [LeakedCluster] {
    try health.requireWrites()
    let done = try await supply.allocator.returnLeaks(leaks, punches: options.discardsToHost)
    if !done.isEmpty { durability.noteDirty() }
    self.leaks.returned.wrappingAdd(UInt64(done.count), ordering: .relaxed)
    return done
  }

  /// The same for clusters that something refers to, with fewer references than are counted.
  ///
  /// One with a single reference gets COPIED, so the image is marked dirty meanwhile: see ``RefcountDoubt``.
  ///
  /// - Parameters:
  ///   - leaks: As ``judgeLeaks(_:isTable:)`` has named them.
  ///   - step: Called after each L2 table.
  /// - Returns: Those that were lowered; others have changed since.
  /// - Throws: ``ImageError/snapshotWithDataFile``, and what the host says; the image then stays marked dirty.
  package func returnSharedLeaks(
    _ leaks: [LeakedCluster], _ step: @Sendable () async -> Void
  ) async throws(ImageError) -> [LeakedCluster] {
    try await withSnapshotWork { (job) async throws(ImageError) in
      let doubt = RefcountDoubt(durability)
      try await doubt.begin()
      let sharing = mapping.tables.sharing
      sharing.beginDropping()
      defer { sharing.endDropping() }
      let done = try await supply.allocator.returnLeaks(leaks, punches: false)
      if !done.isEmpty { durability.noteDirty() }
      for index in 0..<mapping.tables.l1.count where mapping.tables.l1.load(index) != 0 {
        try await settleCopied(ofTable: index, by: job)
        await step()
      }
      try await doubt.end()
      return done
    }
  }
}

extension ClusterSupply {
  /// Host clusters that are reserved, and that nobody has taken.
  var untaken: [Range<HostCluster>] { arenas.untaken().flatMap(\.runs) }

  /// Host clusters that have lost their pointer and not yet their refcount.
  var freed: [Range<HostCluster>] { frees.runs.map { $0.start..<$0.end } }
}

extension ClusterAllocator {
  /// Lowers refcounts to the number of references, where they are still what was read.
  ///
  /// - Returns: Those that were lowered.
  fileprivate func returnLeaks(
    _ leaks: [LeakedCluster], punches: Bool
  ) async throws(ImageError) -> [LeakedCluster] {
    var rest = leaks.sorted { $0.cluster < $1.cluster }[...]
    var done: [LeakedCluster] = []
    while let first = rest.first {
      let range = refcounts.sliceRange(of: first.cluster)
      let part = rest.prefix { range.contains($0.cluster) }
      rest = rest.dropFirst(part.count)
      done += try await returnLeaksInSlice(Array(part), punches: punches)
    }
    return done
  }

  private func returnLeaksInSlice(
    _ leaks: [LeakedCluster], punches: Bool
  ) async throws(ImageError) -> [LeakedCluster] {
    let counts = try await refcounts(of: leaks.map(\.cluster))
    let sure = zip(leaks, counts).filter { leak, count in isLeaked(leak, count) }.map(\.0)
    if punches {
      // Nobody refers to them, and nobody can get them before their refcounts go down.
      for run in Self.runs(of: sure.filter { $0.references == 0 }) {
        await storage.punchHole(
          at: geometry.start(of: run.lowerBound),
          length: UInt64(run.count) << UInt64(geometry.clusterBits))
      }
    }
    return try await lower(sure)
  }

  private static func runs(of leaks: [LeakedCluster]) -> [Range<HostCluster>] {
    var runs: [Range<HostCluster>] = []
    for leak in leaks {
      if let last = runs.last, last.upperBound == leak.cluster {
        runs[runs.count - 1] = last.lowerBound..<(leak.cluster + 1)
      } else {
        runs.append(leak.cluster..<(leak.cluster + 1))
      }
    }
    return runs
  }

  /// Nothing has happened to a cluster since it was judged.
  private func isLeaked(_ leak: LeakedCluster, _ refcount: UInt64) -> Bool {
    refcount == leak.refcount && leak.references < refcount && !frees.watch.knows(leak.cluster)
      && (leak.references > 0 || !metadata.contains(leak.cluster))
  }

  private func lower(_ leaks: [LeakedCluster]) async throws(ImageError) -> [LeakedCluster] {
    guard let first = leaks.first else { return [] }
    await mutex.acquire()
    defer { mutex.release() }
    let order = geometry.refcountOrder
    let lowered = try await withSlice(of: first.cluster) { [refcounts] slice -> [LeakedCluster] in
      leaks.filter { leak in
        let index = refcounts.indexInSlice(leak.cluster)
        let value = unsafe RefcountWidth.get(slice.bytes, order: order, index: index)
        guard self.isLeaked(leak, value) else { return false }
        slice.setRefcount(index, order: order, to: leak.references)
        return true
      }
    }
    let freed = lowered.filter { $0.references == 0 }
    for leak in freed { frees.watch.noteFree(leak.cluster) }
    if let lowest = freed.first { cursor = min(cursor, lowest.cluster) }
    returned.wrappingAdd(UInt64(freed.count), ordering: .relaxed)
    return lowered
  }
}
