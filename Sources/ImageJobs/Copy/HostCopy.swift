import BlockCore
import CPlatform
import DiskImages
import HostFiles
import Synchronization

/// Copies from one raw file to another without the bytes coming here: copy_file_range(2), which shares
/// storage where the file system can.
final class HostCopy: Sendable {
  private let sources: [Int32]
  private let offsets: [UInt64]
  private let target: Int32
  private let targetName: String
  /// The host has refused once: everything is copied in the plain way from then on.
  private let isRefused = Atomic(false)

  /// Nil where a disk is not a raw regular file.
  init?(_ copy: DiskCopy) {
    guard let target = Self.descriptor(copy.target) else { return nil }
    var sources: [Int32] = []
    for source in copy.sources {
      guard let descriptor = Self.descriptor(source.disk) else { return nil }
      sources.append(descriptor)
    }
    self.sources = sources
    offsets = copy.sources.map(\.offset)
    self.target = target
    targetName = copy.target.name
  }

  private static func descriptor(_ disk: any OpenDisk) -> Int32? {
    guard let file = (disk as? RawDisk)?.files.first, !file.traits.isBlockDevice else { return nil }
    return file.descriptor
  }

  /// Copies a range of data.
  ///
  /// - Returns: false if the host cannot; some of the range may have been copied.
  func copy(_ range: CopyRange, _ scanner: CopyScanner) async throws(JobError) -> Bool {
    if isRefused.load(ordering: .relaxed) { return false }
    var place = range.offset
    for var part in scanner.parts(range.offset, range.length) {
      part.offset += offsets[part.source]
      var done: UInt64 = 0
      while done < part.length {
        let count = qublk_copy_range(
          sources[part.source], part.offset + done, target, place, part.length - done)
        if count == -4 { continue }  // EINTR
        // Nothing copied: the end of a source that ends within a sector.
        guard count > 0 else {
          if count < 0, Errno(Int32(-count)).isNoSpace {
            throw .writing(disk: targetName, at: place, Errno(Int32(-count)))
          }
          if count < 0 { isRefused.store(true, ordering: .relaxed) }
          return false
        }
        done += UInt64(count)
        place += UInt64(count)
      }
    }
    return true
  }
}
