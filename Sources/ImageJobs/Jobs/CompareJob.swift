import BlockCore
package import DiskImages
import HostFiles
package import JSON
import QCOW2Engine
import Serving

/// Whether two disks read the same: `compare`.
///
/// Reads only what at least one of the disks has. Several threads read and compare; the answer is that
/// of the lowest offset where something differs or cannot be read.
package struct CompareJob: ImageJob {
  /// The disks, open for ``CompareJob/threads`` workers with ``CompareJob/tasks`` slots each.
  package struct Disks: Sendable {
    let first: any OpenDisk
    let second: any OpenDisk

    /// Two disks.
    package init(_ first: any OpenDisk, _ second: any OpenDisk) {
      self.first = first
      self.second = second
    }
  }

  /// What came out.
  package struct Result: JobValue {
    /// How the disks differ.
    package enum Difference: String, Sendable {
      case size, status, content
    }

    /// Nil if they are the same.
    package var difference: Difference?
    /// The first byte of the sector, or of the range, that differs.
    package var offset: UInt64 = 0
    /// One disk is longer than the other; where the sizes count, that is a ``difference``.
    package var sizesDiffer = false
    /// The bytes that both disks have.
    package var common: UInt64 = 0
  }

  package static let name = "compare"
  package var changesImage: Bool { false }
  /// Sizes count, and so does what the images say of each range (`-s`).
  package var isStrict = false

  /// The job.
  package init(isStrict: Bool) { self.isStrict = isStrict }

  package init(_ arguments: inout JobArguments) throws(JobError) {
    isStrict = try arguments.bool("strict") ?? false
  }

  package var arguments: JSONValue { .object([.init("strict", .bool(isStrict))]) }

  /// The threads that compare.
  package static var threads: Int { DiskCopy.threads(atMost: 8) }
  /// The requests in flight on each thread and disk.
  package static let tasks = 4

  package func run(
    on disks: Disks, _ context: JobContext<NoValue>
  ) async throws(JobError) -> Result {
    let (one, two) = (disks.first.target.size, disks.second.target.size)
    context.progress.begin(max(one, two), .bytes)
    var result = Result()
    result.sizesDiffer = one != two
    result.common = min(one, two)
    if isStrict, one != two {
      result.difference = .size
      return result
    }
    let scanner = CompareScanner(disks.first, disks.second, isStrict: isStrict)
    let findings = CompareFindings()
    let lanes = (0..<Self.threads).map { CompareLane(disks, thread: $0) }
    let files = disks.first.files + disks.second.files
    let needsRings = files.contains { $0.isDirect && !$0.isInMemory }
    try await JobThreads.run(threads: Self.threads, tasks: Self.tasks, hasRings: needsRings) {
      (thread, task) async throws(JobError) in
      do throws(JobError) {
        while let range = try await scanner.next(findings) {
          try await context.checkpoint()
          try await lanes[thread].compare(range, task, findings)
          context.progress.advance(by: range.length)
        }
      } catch {
        // A disk that cannot be read further on is no answer yet; a cancellation is.
        guard case .cancelled = error else { return findings.note(error, at: scanner.position) }
        scanner.stop()
        throw error
      }
    }
    try findings.write(to: &result)
    return result
  }
}

extension CompareJob.Result {
  package var json: JSONValue {
    .object([
      .init("difference", difference.map { .string($0.rawValue) } ?? .null),
      .init("offset", .number(offset)), .init("sizes-differ", .bool(sizesDiffer)),
      .init("common", .number(common)),
    ])
  }

  package init?(json: JSONValue) {
    guard let offset = json["offset"]?.unsigned, let sizesDiffer = json["sizes-differ"]?.bool
    else { return nil }
    self.offset = offset
    common = json["common"]?.unsigned ?? 0
    self.sizesDiffer = sizesDiffer
    difference = json["difference"]?.string.flatMap(Difference.init)
  }
}
