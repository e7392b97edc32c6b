import BlockCore
package import DiskImages
import HostFiles
package import JSON
import QCOW2Engine
import QCOW2Format

/// What a copy of whole disks works on.
package struct ConvertDisks: Sendable {
  /// One behind the other.
  package let sources: [any OpenDisk]
  /// At least as large as what is copied.
  package let target: any OpenDisk

  /// Disks that are open for ``ConvertJob/threads`` workers with ``ConvertJob/tasks`` slots each.
  package init(_ sources: [any OpenDisk], to target: any OpenDisk) {
    self.sources = sources
    self.target = target
  }
}

/// Copies disks into another one, whatever their formats: `convert` and `dd`.
///
/// The sources are only read. Cancelled or killed, the target has some of the data; ``ConvertHost`` sees
/// that it is not taken for the whole.
package struct ConvertJob: ImageJob {
  package static let name = "convert"
  package var changesImage: Bool { true }
  /// The first byte of the sources that is copied.
  package var skip: UInt64 = 0
  /// The most bytes that are copied.
  package var length = UInt64.max
  /// So many zeros among the data are left out of the target, in bytes; 0: none are.
  package var sparse: UInt64 = 4096
  /// Clusters of the target are compressed.
  package var compresses = false
  /// The target reads as zeros, and nothing else shows.
  package var targetIsZero = false
  /// The target has a backing file with what the image itself does not have.
  package var targetHasBacking = false
  /// The host copies between raw files by itself.
  package var offloads = false
  /// What cannot be read becomes zeros.
  package var salvages = false
  /// The requests in flight.
  package var requests = 8
  /// ``length`` counts from the start of the sources, as `dd` counts: ``skip`` is part of it.
  package var cutsEnd = false
  /// Only what this persistent bitmap of the one source says is copied: `backup`; nil for everything.
  package var since: String?
  /// When the target is whole, this persistent bitmap of the one source is cleared; nil for none.
  package var clears: String?

  /// What becomes of the persistent bitmaps of the source.
  package enum Bitmaps: String, CaseIterable, Sendable {
    /// The target has none of them.
    case none
    /// All are copied; the copy fails if one cannot be trusted.
    case all
    /// Those that can be trusted are copied.
    case sound
  }

  /// Copied by ``ConvertHost``, when the data is there.
  package var bitmaps = Bitmaps.none

  /// The job.
  package init() {}

  package init(_ arguments: inout JobArguments) throws(JobError) {
    skip = try arguments.unsigned("skip") ?? skip
    length = try arguments.unsigned("length") ?? length
    sparse = try arguments.unsigned("sparse") ?? sparse
    compresses = try arguments.bool("compress") ?? compresses
    targetIsZero = try arguments.bool("target-is-zero") ?? targetIsZero
    targetHasBacking = try arguments.bool("target-has-backing") ?? targetHasBacking
    offloads = try arguments.bool("offload") ?? offloads
    salvages = try arguments.bool("salvage") ?? salvages
    cutsEnd = try arguments.bool("cuts-end") ?? cutsEnd
    since = try arguments.string("since")
    clears = try arguments.string("clears")
    bitmaps = try arguments.word("bitmaps", Bitmaps.self) ?? bitmaps
    requests = Int(min(try arguments.unsigned("requests") ?? UInt64(requests), 64))
  }

  package var arguments: JSONValue {
    .object([
      .init("skip", .number(skip)), .init("length", .number(length)),
      .init("sparse", .number(sparse)), .init("compress", .bool(compresses)),
      .init("target-is-zero", .bool(targetIsZero)),
      .init("target-has-backing", .bool(targetHasBacking)), .init("offload", .bool(offloads)),
      .init("salvage", .bool(salvages)), .init("cuts-end", .bool(cutsEnd)),
      .init("requests", .number(UInt64(requests))),
      .init("since", since.map { .string($0) } ?? .null),
      .init("clears", clears.map { .string($0) } ?? .null),
      .init("bitmaps", .string(bitmaps.rawValue)),
    ])
  }

  /// The threads of the copy.
  package var threads: Int { DiskCopy.threads(atMost: requests) }
  /// The requests in flight on each thread.
  package var tasks: Int { max(1, (requests + threads - 1) / threads) }

  package func run(
    on disks: ConvertDisks, _ context: JobContext<NoValue>
  ) async throws(JobError) -> NoValue {
    if skip > min(length, disks.sources.reduce(0) { $0 + $1.target.size }) {
      context.tell(.note("cannot skip to specified offset"))
    }
    let policy = policy(disks.target)
    var sources = sources(disks.sources)
    if let since, !sources.isEmpty {
      sources[0].selection = try await RangeSelection(
        since, of: sources[0].disk, unit: policy.unit)
    }
    var copy = DiskCopy(sources, to: disks.target)
    copy.policy = policy
    try await copy.run(context) { (offset, errno) in
      context.tell(.note("warning: error while reading offset \(offset): \(errno)"))
    }
    return NoValue()
  }

  /// The bytes that are copied of disks of this size.
  package func length(of disks: [any OpenDisk]) -> UInt64 {
    sources(disks).reduce(0) { $0 + $1.length }
  }

  private func sources(_ disks: [any OpenDisk]) -> [CopySource] {
    var skipped = skip
    var left = cutsEnd ? length - min(length, skip) : length
    var sources: [CopySource] = []
    for disk in disks {
      var source = CopySource(disk)
      source.isOwnLayerOnly = targetHasBacking
      source.cut(skipping: skipped, upTo: left)
      skipped -= source.offset
      left -= source.count
      if source.count > 0 { sources.append(source) }
    }
    return sources
  }

  private func policy(_ target: any OpenDisk) -> CopyPolicy {
    var policy = CopyPolicy()
    policy.unit = unit(target)
    policy.sparse = sparse
    policy.targetIsZero = targetIsZero && !targetHasBacking && since == nil
    policy.compresses = compresses
    policy.offloads = offloads
    policy.salvages = salvages
    policy.threads = threads
    policy.tasks = tasks
    return policy
  }

  private func unit(_ target: any OpenDisk) -> UInt64 {
    guard let image = (target as? DiskImage)?.engine else {
      return UInt64(target.files.map(\.traits.offsetAlignment).max() ?? 512).roundedToSector
    }
    // A cluster that has a part of a change has all of it: what is around it is in no other place.
    if compresses || since != nil { return image.geometry.clusterSize }
    return targetHasBacking ? 512 : EntryRules(image.header).subclusterSize
  }
}

extension UInt64 {
  /// At least a sector.
  fileprivate var roundedToSector: UInt64 { Swift.max(self, 512) }
}
