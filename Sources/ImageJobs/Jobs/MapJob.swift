import BlockCore
package import DiskImages
package import JSON
import QCOW2Engine

/// What the ranges of a disk are, and which layer of its backing chain has them: `map`.
///
/// Hands out ranges from the first to the last byte asked for, without gaps, neighbours never alike. On a
/// disk in use, each range was true at a moment of the run.
package struct MapJob: DiskJob {
  package static let name = "map"
  package var changesImage: Bool { false }
  /// The first byte asked for.
  package var start: UInt64 = 0
  /// The bytes asked for; what lies behind the end of the disk does not count.
  package var length = UInt64.max
  /// Only what the image itself has is told, in two kinds: allocated or not.
  package var isOwnOnly = false
  /// What the answer calls the image; nil for what the host knows it by.
  package var filename: String?

  /// The job, for the whole disk.
  package init() {}

  /// The job, for a part of the disk.
  package init(start: UInt64, length: UInt64) {
    self.start = start
    self.length = length
  }

  package init(_ arguments: inout JobArguments) throws(JobError) {
    start = try arguments.unsigned("start") ?? 0
    length = try arguments.unsigned("length") ?? .max
    isOwnOnly = try arguments.bool("own-only") ?? false
    filename = try arguments.string("filename")
  }

  package var arguments: JSONValue {
    var members: [JSONValue.Member] = [
      .init("start", .number(start)), .init("length", .number(length)),
    ]
    if isOwnOnly { members.append(.init("own-only", .bool(true))) }
    if let filename { members.append(.init("filename", .string(filename))) }
    return .object(members)
  }

  package func run(
    on disk: any OpenDisk, _ context: JobContext<MapRange>
  ) async throws(JobError) -> NoValue {
    let first = start
    let names = names(disk)
    context.progress.begin(end(on: disk) - first, .bytes)
    var found: MapRange?
    var next = first
    // The size is looked at again each time: the disk may be resized meanwhile.
    while next < end(on: disk) {
      try await context.checkpoint()
      let range = try await range(at: next, end: end(on: disk), disk, names)
      next += range.length
      if let joined = found?.joined(with: range) {
        found = joined
      } else {
        if let found { try await context.emit(found) }
        found = range
      }
      context.progress.reach(next - first)
    }
    if let found { try await context.emit(found) }
    return NoValue()
  }

  /// The names of the files with data, by the depth of their layer.
  private func names(_ disk: any OpenDisk) -> [String] {
    let top = filename ?? disk.objects.first?.path ?? ""
    return (disk as? DiskImage)?.dataFileNames(top: top) ?? [top]
  }

  /// Where the part ends, at ``start`` or behind it.
  private func end(on disk: any OpenDisk) -> UInt64 {
    let (end, overflow) = start.addingReportingOverflow(length)
    return max(start, min(overflow ? .max : end, disk.target.size))
  }

  private func range(
    at offset: UInt64, end: UInt64, _ disk: any OpenDisk, _ names: [String]
  ) async throws(JobError) -> MapRange {
    do throws(ImageError) {
      if !isOwnOnly {
        let status = try await disk.status(at: GuestOffset(offset), length: end - offset)
        return MapRange(status, start: offset, names)
      }
      guard let engine = (disk as? DiskImage)?.engine else {
        return MapRange(start: offset, length: end - offset, isAllocated: true)
      }
      let found = try await engine.allocation(at: GuestOffset(offset), length: end - offset)
      return MapRange(start: offset, length: found.length, isAllocated: found.isAllocated)
    } catch { throw .image(error) }
  }
}
