package import BlockCore
package import DiskImages
import HostFiles

/// Copies disks to another disk: the one copier of all jobs.
///
/// Several threads read, look for zeros, compress and write at the same time, each with several requests
/// in flight. What a source does not have is never read. Every request goes to the disks as the driver's
/// do, with the thread's number as the worker, so both disks are opened for as many workers as there are
/// threads (``threads(atMost:)``), and for as many slots as there are tasks.
///
/// The target is written out of order within some chunks. A copy that fails or is cancelled leaves the
/// target whole as an image, with some of its data.
package struct DiskCopy: Sendable {
  /// What is copied, one source behind the other; lengths are multiples of 512.
  package let sources: [CopySource]
  /// What is written: at least as long as all sources.
  package let target: any OpenDisk
  /// How the target is written.
  package var policy = CopyPolicy()

  /// A copy.
  package init(_ sources: [CopySource], to target: any OpenDisk) {
    self.sources = sources
    self.target = target
  }

  /// The threads that pay for a copy on this machine: one for each processor, but four where there are
  /// fewer, since a thread may wait for its files; `limit` at most.
  package static func threads(atMost limit: Int) -> Int {
    max(1, min(limit, max(JobThreads.processors, 4), 16))
  }

  /// Copies everything.
  ///
  /// - Parameters:
  ///   - context: Gets the progress, in bytes of the target. Each range is a safe point.
  ///   - onSalvage: Hears of each sector that could not be read and is zeros in the target.
  /// - Throws: ``JobError/reading(disk:at:_:)``, ``JobError/writing(disk:at:_:)``, or what the engine finds
  ///   wrong with a mapping.
  package func run<Item>(
    _ context: JobContext<Item>,
    onSalvage: @escaping @Sendable (UInt64, Errno) -> Void = { _, _ in }
  ) async throws(JobError) {
    let total = sources.reduce(0) { $0 + $1.length }
    context.progress.begin(total, .bytes)
    // The last bytes come last, so that a file's length says whether it is complete.
    let tail = max(policy.unit, 4096)
    let border = total > tail ? (total - tail) & ~(policy.unit - 1) : 0
    try await run(0..<border, context, onSalvage)
    try await run(border..<total, context, onSalvage)
  }

  private func run<Item>(
    _ range: Range<UInt64>, _ context: JobContext<Item>,
    _ onSalvage: @escaping @Sendable (UInt64, Errno) -> Void
  ) async throws(JobError) {
    if range.isEmpty { return }
    let scanner = CopyScanner(
      sources, unit: policy.unit, chunk: max(policy.chunk, policy.unit),
      splitsZeroes: policy.sparse == 0, salvages: policy.salvages, range: range)
    let threads = range.lowerBound == 0 ? policy.threads : 1
    let plain = PlainCopy(self)
    let lanes = (0..<threads).map { thread in
      CopyLane(self, scanner, plain, thread: thread, onSalvage: onSalvage)
    }
    try await JobThreads.run(
      threads: threads, tasks: policy.tasks, hasRings: needsRings
    ) { (thread, task) async throws(JobError) in
      do throws(JobError) {
        while let range = try await scanner.next() {
          try await context.checkpoint()
          try await lanes[thread].copy(range, task: task)
          context.progress.advance(by: range.length)
          if range.kind == .data { try await context.checkpoint(range.length) }
        }
      } catch {
        scanner.stop()
        throw error
      }
    }
  }

  /// Through the page cache most transfers end at once, so a ring costs more than it gives: the kernel hands
  /// those that do not to threads of its own.
  private var needsRings: Bool {
    (sources.map(\.disk) + [target]).contains { disk in
      disk.files.contains { $0.isDirect && !$0.isInMemory }
    }
  }
}

/// How a ``DiskCopy`` writes its target.
package struct CopyPolicy: Sendable {
  /// The bytes of the target that are written or left out as a whole; a power of two, at least 512: the
  /// cluster, but 512 where the target has a backing file that shows.
  package var unit: UInt64 = 4096
  /// Zeros among the data that are at least so many bytes are not written; 0: all zeros are written.
  package var sparse: UInt64 = 4096
  /// The target reads as zeros where nothing has been written.
  package var targetIsZero = false
  /// Clusters are compressed.
  package var compresses = false
  /// The host copies from file to file where both are raw, and zeros are not looked for.
  package var offloads = false
  /// What cannot be read becomes zeros.
  package var salvages = false
  /// The threads; both disks are open for as many workers.
  package var threads = 1
  /// The requests in flight on each thread; both disks are open for as many slots.
  package var tasks = 1
  /// The most bytes of one read; a power of two.
  package var chunk: UInt64 = 1 << 20

  /// The standard.
  package init() {}
}
