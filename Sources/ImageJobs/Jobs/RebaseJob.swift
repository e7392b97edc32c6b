import BlockCore
package import DiskImages
package import JSON
import QCOW2Engine
import QCOW2Format

/// What `rebase` works on: an image and its backing file to be.
package struct RebaseSubject: Sendable {
  /// The image, open for writing, with its chain unless the job is unsafe.
  package let image: DiskImage
  /// The new backing file; nil for none, and for an unsafe job.
  package let base: NewBacking?

  /// An image and its backing file to be.
  package init(image: DiskImage, base: NewBacking?) {
    self.image = image
    self.base = base
  }
}

/// Gives an image another backing file, or none: `rebase`.
///
/// Where the disk would read otherwise through the new backing file, what it reads now is copied into the
/// image first. Once that is durable, one write of the header makes the new name the one in force. Killed or
/// cancelled at any point, the image reads the same with the name that its header has.
package struct RebaseJob: ImageJob {
  package static let name = "rebase"
  package var changesImage: Bool { true }
  /// The name as it is to stand in the header; nil for no backing file.
  package var base: String?
  /// The format of the new backing file.
  package var format: BackingFormat?
  /// Only the header changes.
  package var isUnsafe: Bool
  /// What is copied is compressed.
  package var compresses: Bool

  /// The job.
  package init(base: String?, format: BackingFormat?, isUnsafe: Bool, compresses: Bool) {
    self.base = base
    self.format = format
    self.isUnsafe = isUnsafe
    self.compresses = compresses
  }

  package init(_ arguments: inout JobArguments) throws(JobError) {
    base = try arguments.string("base")
    format = try arguments.word("format", BackingFormat.self)
    isUnsafe = try arguments.bool("unsafe") ?? false
    compresses = try arguments.bool("compress") ?? false
  }

  package var arguments: JSONValue {
    .object(
      (base.map { [.init("base", .string($0))] } ?? [])
        + (format.map { [.init("format", .string($0.rawValue))] } ?? [])
        + [.init("unsafe", .bool(isUnsafe)), .init("compress", .bool(compresses))])
  }

  package func run(
    on subject: RebaseSubject, _ context: JobContext<NoValue>
  ) async throws(JobError) -> NoValue {
    let engine = subject.image.engine
    let name: Image.BackingName = base.map { .file($0, format: format?.rawValue) } ?? .none
    try await requireRoom(for: name, in: engine)
    if !isUnsafe {
      let rebase = Rebase(subject, compresses: compresses)
      try await JobDisk.use(subject.image) { (image) async throws(JobError) in
        try await rebase.copyDifferences(into: image, context)
      }
    }
    try context.cancellation.check()
    do throws(ImageError) {
      _ = try await engine.replaceBacking(with: subject.base?.layer, name: name)
    } catch { throw .image(error) }
    return NoValue()
  }

  /// Before anything is copied.
  private func requireRoom(for name: Image.BackingName, in engine: Image) async throws(JobError) {
    if let base {
      if engine.header.autoclear.contains(.rawExternalData) {
        throw .arguments(
          "Could not change the backing file to '\(base)': the image's data file is a raw image of the "
            + "disk, which a backing file would make untrue: convert the image instead")
      }
      do throws(ImageError) { try await engine.requireRoom(forBackingName: name) } catch {
        guard case .headerFull = error else { throw .image(error) }
        throw .arguments(
          "Could not change the backing file to '\(base)': No space left in the file header: give it a "
            + "shorter name of at most 1023 bytes, a symbolic link for one")
      }
    }
  }
}
