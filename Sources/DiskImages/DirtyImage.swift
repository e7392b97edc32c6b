import BlockCore
import HostFiles
import QCOW2Engine
import QCOW2Tools

/// Opens the topmost image; one that is marked dirty gets its refcounts rebuilt first.
enum DirtyImage {
  /// Opens an image whose file is locked by the caller.
  ///
  /// Without the permission to write, a dirty image is opened as it is: reading needs no refcounts.
  ///
  /// - Returns: the image, and what a rebuild has changed; nil if there was none.
  /// - Throws: ``DiskImageError/Reason/refcounts(_:)`` if the image has damage of other kinds, with
  ///   nothing changed, or if the rebuild failed; the image is still marked dirty then.
  static func open(
    _ sources: ImageSources, _ file: RingHostFile, _ options: ImageOptions
  ) async throws(DiskImageError.Reason) -> (Image, RefcountChanges?) {
    do throws(ImageError) { return (try await Image.open(sources, options: options), nil) } catch {
      guard case .markedDirty = error else { throw .engine(error) }
    }
    let changes: RefcountChanges
    do throws(ToolError) { changes = try rebuild(file.descriptor) } catch {
      throw .refcounts(error.message)
    }
    do throws(ImageError) {
      return (try await Image.open(sources, options: options), changes)
    } catch {
      throw .engine(error)
    }
  }

  /// Works through the page cache, beside a descriptor that may bypass it and has only read so far.
  ///
  /// Everything is synced at the end, so the two never differ.
  private static func rebuild(_ descriptor: Int32) throws(ToolError) -> RefcountChanges {
    let bytes = try FileBytes(path: "/proc/self/fd/\(descriptor)", access: .readWriteHeld)
    return try RefcountRebuild.run(bytes)
  }
}
