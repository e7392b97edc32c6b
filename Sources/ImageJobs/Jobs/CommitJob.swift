import BlockCore
package import DiskImages
package import JSON
import QCOW2Engine

/// Brings what an image has of its own down into its base: `commit`.
///
/// The base is made as large as the image first if it is smaller. What any layer above the base has is
/// written into it, zeros as zeros. When that is durable, the image is emptied if asked for. The disk reads
/// the same through the image at every moment, so a commit that was killed or cancelled is simply run again.
package struct CommitJob: ImageJob {
  package static let name = "commit"
  package var changesImage: Bool { true }
  /// In the end the image has no data of its own left.
  package var empties: Bool
  /// The requests in flight.
  private static let requests = 8

  /// The job.
  package init(empties: Bool) { self.empties = empties }

  package init(_ arguments: inout JobArguments) throws(JobError) {
    empties = try arguments.bool("empties") ?? true
  }

  package var arguments: JSONValue { .object([.init("empties", .bool(empties))]) }

  /// The threads of the copy: both disks are opened for as many workers.
  package var threads: Int { DiskCopy.threads(atMost: Self.requests) }
  /// The requests in flight on each thread: both disks are opened for as many slots.
  package var tasks: Int { (Self.requests + threads - 1) / threads }

  package func run(
    on pair: DiskPair, _ context: JobContext<NoValue>
  ) async throws(JobError) -> NoValue {
    let size = pair.top.target.size
    if pair.base.target.size < size { try await Self.resize(pair.base, to: size) }
    var source = CopySource(pair.top)
    source.layers = pair.depth
    var copy = DiskCopy([source], to: pair.base)
    copy.policy = policy(pair.base)
    try await copy.run(context)
    try await Self.flush(pair.base)
    if empties {
      try context.cancellation.check()
      do throws(ImageError) { try await pair.top.engine.makeEmpty() } catch { throw .image(error) }
    }
    return NoValue()
  }

  /// What lies beside the copied ranges is the base's own: no unit may be taken as a whole.
  private func policy(_ base: any OpenDisk) -> CopyPolicy {
    var policy = CopyPolicy()
    policy.unit = 512
    policy.sparse = max((base as? DiskImage)?.engine.mappingUnit ?? 4096, 4096)
    policy.threads = threads
    policy.tasks = tasks
    return policy
  }

  private static func resize(_ base: any OpenDisk, to size: UInt64) async throws(JobError) {
    switch base {
    case let base as DiskImage:
      do throws(ImageError) { try await base.engine.resize(to: size) } catch { throw .image(error) }
    case let base as RawDisk:
      do throws(Errno) { try await base.raw.resize(to: size) } catch { throw .raw(error) }
    default: throw .format(needed: .qcow2)
    }
  }

  private static func flush(_ base: any OpenDisk) async throws(JobError) {
    let slot = RequestSlot(worker: 0, number: 0)
    if let errno = await base.target.serve(BlockRequest(.flush), at: slot).errno {
      throw .writing(disk: base.name, at: 0, errno)
    }
  }
}
