import DiskImages
import QCOW2Engine
import QCOW2Format

/// The persistent bitmaps of the source of a copy, which are made anew in the target.
struct BitmapCopy {
  private let source: Image
  private let bitmaps: [BitmapSummary]

  /// Looks at the bitmaps of the source, before the target is made.
  ///
  /// - Parameters:
  ///   - disks: The sources of the copy.
  ///   - skipsBroken: A bitmap that cannot be trusted is left out, with a warning.
  ///   - warn: Gets the warnings.
  /// - Throws: ``JobError/arguments(_:)`` if bitmaps cannot be copied from there.
  init(
    of disks: [any OpenDisk], skipsBroken: Bool, _ warn: (String) -> Void
  ) async throws(JobError) {
    guard disks.count == 1 else {
      throw .arguments("Copying bitmaps only possible with single source")
    }
    guard let image = (disks[0] as? DiskImage)?.engine else {
      throw .arguments("Source lacks bitmap support: a raw image has none")
    }
    source = image
    var sound: [BitmapSummary] = []
    do throws(ImageError) {
      for bitmap in try await image.bitmaps() {
        if !bitmap.isInconsistent {
          sound.append(bitmap)
        } else if skipsBroken {
          warn("warning: Skipping inconsistent bitmap '\(bitmap.name)'")
        } else {
          throw .bitmapRefused(.inconsistent(bitmap.name))
        }
      }
    } catch { throw Self.failure(error) }
    bitmaps = sound
  }

  private static func failure(_ error: ImageError) -> JobError {
    guard case .bitmapRefused(.inconsistent(let name)) = error else { return .image(error) }
    return .arguments(
      "Cannot copy inconsistent bitmap '\(name)': try --skip-broken-bitmaps, or delete it with "
        + "\"qublk bitmap --remove\"")
  }

  /// Looks whether a target can have bitmaps.
  ///
  /// - Throws: ``JobError/arguments(_:)``.
  static func requireSupport(_ target: any OpenDisk) throws(JobError) {
    guard let image = (target as? DiskImage)?.engine else {
      throw .arguments("Format driver 'raw' does not support bitmaps")
    }
    guard image.header.version >= 3 else {
      throw .arguments(
        "Format driver 'qcow2' does not support bitmaps in an image of version 2: use -o compat=1.1"
      )
    }
  }

  /// Makes the bitmaps in the target, which has the data already; each is durable before the next.
  ///
  /// - Throws: ``JobError/arguments(_:)`` if the target cannot have one of them; those before it stay.
  func make(in target: any OpenDisk) async throws(JobError) {
    guard let image = (target as? DiskImage)?.engine else { return }
    for bitmap in bitmaps {
      try await change("create", bitmap, image, .add(bitmap.name, granularity: bitmap.granularity))
      try await change(
        "populate", bitmap, image,
        .merge(into: bitmap.name, from: .image(source, bitmap.name)))
      // What is disabled must not have followed any write but those of the copy.
      if !bitmap.isEnabled { try await change("disable", bitmap, image, .disable(bitmap.name)) }
    }
  }

  private func change(
    _ verb: String, _ bitmap: BitmapSummary, _ image: Image, _ change: BitmapChange
  ) async throws(JobError) {
    do throws(ImageError) { try await image.changeBitmaps(change) } catch {
      guard case .bitmapRefused(let refusal) = error else { throw .image(error) }
      throw .arguments("Failed to \(verb) bitmap \(bitmap.name): \(refusal.text)")
    }
  }
}
