import BlockCore
package import DiskImages
package import JSON
import QCOW2Engine

/// Which ranges of a disk the image itself has, apart from its backing files.
///
/// Hands out ranges from the first to the last byte asked for, without gaps, neighbours never alike. On a
/// disk in use, each range was true at a moment of the run.
package struct MapJob: DiskJob {
  /// A range that is all alike.
  package struct Range: JobValue {
    /// In bytes of the disk.
    package var start: UInt64
    /// In bytes.
    package var length: UInt64
    /// The image has the data, or says that there are zeros; else its backing file is asked.
    package var isAllocated: Bool

    /// A range.
    package init(start: UInt64, length: UInt64, isAllocated: Bool) {
      self.start = start
      self.length = length
      self.isAllocated = isAllocated
    }
  }

  package static let name = "map"
  package var changesImage: Bool { false }
  /// The first byte asked for.
  package var start: UInt64 = 0
  /// The bytes asked for; what lies behind the end of the disk does not count.
  package var length = UInt64.max

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
  }

  package var arguments: JSONValue {
    .object([.init("start", .number(start)), .init("length", .number(length))])
  }

  package func run(
    on disk: any OpenDisk, _ context: JobContext<Range>
  ) async throws(JobError) -> NoValue {
    let first = start
    context.progress.begin(end(on: disk) - first, .bytes)
    var found: Range?
    var next = first
    // The size is looked at again each time: the disk may be resized meanwhile.
    while next < end(on: disk) {
      try await context.checkpoint()
      let range = try await Self.range(at: next, end: end(on: disk), disk)
      next += range.length
      if var last = found, last.isAllocated == range.isAllocated {
        last.length += range.length
        found = last
      } else {
        if let found { try await context.emit(found) }
        found = range
      }
      context.progress.reach(next - first)
    }
    if let found { try await context.emit(found) }
    return NoValue()
  }

  /// Where the part ends, at ``start`` or behind it.
  private func end(on disk: any OpenDisk) -> UInt64 {
    let (end, overflow) = start.addingReportingOverflow(length)
    return max(start, min(overflow ? .max : end, disk.target.size))
  }

  private static func range(
    at offset: UInt64, end: UInt64, _ disk: any OpenDisk
  ) async throws(JobError) -> Range {
    guard let engine = (disk as? DiskImage)?.engine else {
      return Range(start: offset, length: end - offset, isAllocated: true)
    }
    do throws(ImageError) {
      let found = try await engine.allocation(at: GuestOffset(offset), length: end - offset)
      return Range(start: offset, length: found.length, isAllocated: found.isAllocated)
    } catch { throw .image(error) }
  }
}

extension MapJob.Range {
  package var json: JSONValue {
    .object([
      .init("start", .number(start)), .init("length", .number(length)),
      .init("allocated", .bool(isAllocated)),
    ])
  }

  package init?(json: JSONValue) {
    guard let start = json["start"]?.unsigned, let length = json["length"]?.unsigned,
      let isAllocated = json["allocated"]?.bool
    else { return nil }
    self.init(start: start, length: length, isAllocated: isAllocated)
  }
}
