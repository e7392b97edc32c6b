import QCOW2Engine

/// Which backing file of a chain is opened for writing, beside the image.
package enum WritableBase: Sendable, Equatable {
  /// That of the image itself.
  case next
  /// The one of this name, which counts from the directory of the image that refers to it.
  case named(String)

  /// What is wrong with a chain that does not have it.
  var absence: DiskImageError.Reason {
    if case .named(let name) = self { .baseNotFound(name) } else { .noBackingFile }
  }
}

/// An image and one of its backing files, the base, open as two disks of one chain: what `commit` works on.
///
/// The chain is opened once, so each file has one descriptor and one lock: a writer's for the base and its
/// data file, and for the image unless it is opened read-only; readers' for all else. The image's chain ends
/// above the base, at a ``FencedLayer``: nothing can be read through it that the base provides, so no cache
/// can hold what the base had before a write. ``OpenDisk/status(at:length:)`` of the image says
/// ``BlockStatus/Kind/unallocated`` at ``depth`` there.
package struct DiskPair: Sendable {
  /// The image, with the layers between it and the base.
  package let top: DiskImage
  /// The backing file, with those below it.
  package let base: any OpenDisk
  /// How many layers are above the base.
  package let depth: Int

  /// Opens a chain whose options have a ``DiskImageOptions/writableBase``.
  ///
  /// - Throws: What is wrong with the chain, ``DiskImageError/Reason/noBackingFile`` or
  ///   ``DiskImageError/Reason/baseNotFound(_:)``; nothing then stays open.
  package static func open(_ options: DiskImageOptions) async throws(DiskImageError) -> DiskPair {
    var upper = Chain(options)
    defer { _ = options.secrets.dropRest() }
    let depth: Int
    do throws(DiskImageError) {
      try await upper.open()
      try await upper.unlock()
      guard let index = upper.baseIndex else { throw upper.error(.noBackingFile, in: 0) }
      depth = index
    } catch {
      upper.close()
      throw error
    }
    let lower = upper.split(at: depth)
    let base: any OpenDisk
    do throws(DiskImageError) { base = try await openBase(lower) } catch {
      upper.close()
      throw error
    }
    do throws(DiskImageError) {
      let top = try await DiskImage.open(upper, upon: FencedLayer())
      return DiskPair(top: top, base: base, depth: depth)
    } catch {
      upper.close()
      try? await base.close()
      throw error
    }
  }

  private static func openBase(_ chain: Chain) async throws(DiskImageError) -> any OpenDisk {
    do throws(DiskImageError) {
      if chain.layers[0].head != nil { return try await DiskImage.open(chain) }
      return try await RawDisk.open(chain)
    } catch {
      chain.close()
      throw error
    }
  }
}
