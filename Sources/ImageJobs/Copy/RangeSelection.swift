import DiskImages
import QCOW2Engine

/// The parts of a disk that a bitmap names, in whole units of the target.
///
/// Asked by one task at a time, from the first byte to the last; never for anything before the range that
/// came before the last one.
final class RangeSelection: @unchecked Sendable {  // why: used under the scanner's mutex
  private var ranges: DirtyRanges
  private let unit: UInt64
  private let size: UInt64
  private var last: Range<UInt64> = 0..<0
  private var current: Range<UInt64> = 0..<0

  /// What a bitmap of a disk names.
  ///
  /// - Parameters:
  ///   - bitmap: Its name.
  ///   - disk: An image.
  ///   - unit: A power of two; ranges are widened to multiples of it.
  /// - Throws: ``JobError/image(_:)`` if there is no such bitmap, or it cannot be trusted.
  init(_ bitmap: String, of disk: any OpenDisk, unit: UInt64) async throws(JobError) {
    guard let image = (disk as? DiskImage)?.engine else { throw .format(needed: .qcow2) }
    do throws(ImageError) { ranges = try await image.dirtyRanges(of: bitmap) } catch {
      throw .image(error)
    }
    self.unit = unit
    size = image.size
  }

  /// Whether a byte of the disk is selected, and where the bytes end of which that is so, too.
  func status(at offset: UInt64) async throws(ImageError) -> (isSelected: Bool, end: UInt64) {
    if last.contains(offset) { return (true, last.upperBound) }
    while current.upperBound <= offset, let next = try await next() {
      last = current
      current = next
    }
    if current.contains(offset) { return (true, current.upperBound) }
    return (false, offset < current.lowerBound ? current.lowerBound : .max)
  }

  /// The next range; those that touch in whole units are not joined.
  private func next() async throws(ImageError) -> Range<UInt64>? {
    while let found = try await ranges.next() {
      let start = max(found.lowerBound & ~(unit - 1), current.upperBound)
      let (end, overflow) = found.upperBound.addingReportingOverflow(unit - 1)
      let reach = overflow ? size : min(size, end & ~(unit - 1))
      if start < reach { return start..<reach }
    }
    return nil
  }
}
