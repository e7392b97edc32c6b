import HostFiles
package import QCOW2Engine

/// What is to become the backing file of an open image: opened, and read only.
package struct NewBacking: Sendable {
  /// What is read from it and what lies below it.
  package let layer: any BackingLayer
  /// Its place in ``DiskImage/backingFiles``, if it is part of the image's chain already.
  package let index: Int?
  /// What to close in the end; nil if the image has it open.
  package let disk: (any OpenDisk)?
}

extension DiskImage {
  /// Opens what is to become the backing file of this image, with all that it refers to.
  ///
  /// - Parameters:
  ///   - name: As it is to stand in the image: a relative name counts from the image's directory.
  ///   - format: What it is.
  ///   - options: How; path, format of locks and names are filled in.
  /// - Returns: The layer for ``Image/replaceBacking(with:name:)``, and what to close afterwards.
  /// - Throws: What is wrong with it. ``DiskImageError/Reason/repeated`` if the image itself is part of its
  ///   chain.
  package func openBacking(
    _ name: String, format: BackingFormat, _ options: DiskImageOptions
  ) async throws(DiskImageError) -> NewBacking {
    var options = options
    options.readOnly = true
    options.name = name
    let key: FileKey
    do throws(DiskImageError.Reason) {
      options.path = try ReferenceName.path(of: name, from: objects.first?.path ?? "")
      options.imageAbove = try FileKey(files[0].descriptor)
      key = try FileKey(path: options.path)
      if key == options.imageAbove { throw .repeated }
    } catch {
      throw DiskImageError(image: name, referrer: nil, subject: .image, reason: error)
    }
    let index = backingFiles.firstIndex {
      $0.isRaw == (format == .raw) && (try? FileKey($0.file.descriptor)) == key
    }
    if let index { return NewBacking(layer: backingFiles[index].layer, index: index, disk: nil) }
    switch format {
    case .qcow2:
      let disk = try await DiskImage.open(options)
      return NewBacking(layer: ImageLayer(disk.engine), index: nil, disk: disk)
    case .raw:
      let disk = try await RawDisk.open(options)
      let layer = RawLayer(disk.files[0], length: disk.length)
      return NewBacking(layer: layer, index: nil, disk: disk)
    }
  }
}
