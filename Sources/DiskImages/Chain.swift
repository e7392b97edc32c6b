import BlockCore
import HostFiles
import QCOW2Codec
import QCOW2Engine
import QCOW2Format

/// One image of a chain, its files open and locked, before the engine sees it.
struct ChainLayer {
  /// What stands in the referring image; of the top image, what the user calls it.
  let name: String
  /// Absolute, symbolic links as they are: what relative names of backing files in it count from.
  let path: String
  let file: RingHostFile
  var number: UInt8?
  /// Nil for a raw file.
  var head: HeaderCluster?
  var dataFile: RingHostFile?
  var dataNumber: UInt8?
  var dataPath: String?
  /// As the image or the user names it.
  var dataName: String?
  /// Unlocked; nil for plain images.
  var cipher: (any SectorCipher)?
}

/// Opens the files of a chain from the top down, and keeps account of them.
///
/// Not a loop over engines: nothing is served before every file is there.
struct Chain {
  /// The most backing files in a chain.
  ///
  /// QEMU has no such limit, but recursion, a descriptor and caches
  /// for each; 200 are more than any tool makes and fit into a worker's stack [COW-12].
  static let depthLimit = 200
  /// Host transfers name files with one byte.
  private static let numberLimit = 255

  private(set) var options: DiskImageOptions
  private let opener: ChainFileOpener
  /// Which layer is open for writing beside the image: ``DiskImageOptions/writableBase``.
  private(set) var baseIndex: Int?
  private var seen: Set<FileKey> = []
  var layers: [ChainLayer] = []
  /// In the order of their numbers.
  private(set) var files: [RingHostFile] = []

  init(_ options: DiskImageOptions) {
    self.options = options
    opener = ChainFileOpener(options: options)
    if let above = options.imageAbove { seen.insert(above) }
  }

  /// Opens everything; after an error the files so far are still open.
  mutating func open() async throws(DiskImageError) {
    try await openTop()
    while let next = try nextReference() { try await openBacking(next) }
    guard let base = options.writableBase, baseIndex == nil else { return }
    throw error(.image, base.absence, below: 0)
  }

  func close() { Self.close(files) }

  /// What ``files`` are, by the same numbers.
  var objects: [HostObject] {
    layers.indices.flatMap { index in
      let layer = layers[index]
      return [HostObject(index == 0 ? .image : .backingFile, path: layer.path)]
        + (layer.dataPath.map { [HostObject(.dataFile, path: $0)] } ?? [])
    }
  }

  /// Lets go of files and, at once, of their locks.
  static func close(_ files: [RingHostFile]) {
    for file in files {
      if !file.isHeld { ImageLock.release(file.descriptor) }
      file.closeDescriptor()
    }
  }

  // MARK: The image

  private mutating func openTop() async throws(DiskImageError) {
    do throws(DiskImageError.Reason) {
      if options.locks == .none && !options.readOnly { throw .unlockedWriting }
      let path: String
      do throws(Errno) { path = try FilePath.absolute(options.path) } catch { throw .open(error) }
      let file = try opener.openFile(path, readOnly: options.readOnly)
      let number = add(file)
      seen.insert(try FileKey(file.descriptor))
      try opener.lock(file, readOnly: options.readOnly)
      layers.append(ChainLayer(name: options.name, path: path, file: file, number: number))
      layers[0].head = try await Self.head(of: options.headerFile(file))
    } catch { throw self.error(.image, error, below: 0) }
    try await openDataFile(override: options.dataFile, readOnly: options.readOnly)
  }

  private static func head(
    of file: any HostFile
  ) async throws(DiskImageError.Reason) -> HeaderCluster {
    do throws(ImageError) { return try await HeaderCluster.read(file) } catch {
      throw .engine(error)
    }
  }

  private mutating func add(_ file: RingHostFile) -> UInt8? {
    files.append(file)
    return files.count <= Self.numberLimit ? UInt8(files.count - 1) : nil
  }

  // MARK: Data files

  /// Opens the data file of the last layer, if it has one.
  private mutating func openDataFile(
    override: String?, readOnly: Bool
  ) async throws(DiskImageError) {
    let index = layers.count - 1
    guard let head = layers[index].head else { return }
    guard head.header.incompatible.contains(.externalDataFile) else {
      if override != nil { throw error(.image, .dataFileNotWanted, below: index) }
      return
    }
    guard let name = override ?? head.dataFile, !name.isEmpty else {
      throw error(subject(index), .dataFileNameMissing, below: index - 1)
    }
    do throws(DiskImageError.Reason) {
      let path = try dataPath(name, isOverride: override != nil)
      let file = try opener.open(
        path, for: override == nil ? Referrer(layers[index]) : nil, readOnly: readOnly, seen: &seen)
      layers[index].dataFile = file
      layers[index].dataPath = path
      layers[index].dataName = name
      layers[index].dataNumber = add(file)
    } catch {
      let isLost = override == nil && !name.hasPrefix("/") && error.isMissingFile
      throw self.error(.dataFile(name), isLost ? .dataFileLost : error, below: index)
    }
  }

  /// Where the data file is.
  ///
  /// A relative name counts from the current directory, whether the image or the user gives it: QEMU
  /// makes and opens data files so, wherever the image is. A daemon has the directory it was started in.
  private func dataPath(
    _ name: String, isOverride: Bool
  ) throws(DiskImageError.Reason) -> String {
    let directory: String
    do throws(Errno) {
      directory =
        if name.hasPrefix("/") || name.hasPrefix("file:/") {
          ""  // counts from nowhere
        } else if let given = options.currentDirectory {
          try given.get()
        } else {
          try FilePath.currentDirectory()
        }
    } catch { throw .open(error) }
    return isOverride
      ? FilePath.combine(directory + "/", name)
      : try ReferenceName.path(of: name, from: directory + "/")
  }

  // MARK: Backing files

  private struct Reference {
    let name: String
    let format: BackingFormat
  }

  /// What the last layer has as its backing file.
  ///
  /// A name of no length is no backing file, as in QEMU.
  private func nextReference() throws(DiskImageError) -> Reference? {
    let index = layers.count - 1
    if options.ignoresBacking { return nil }
    let given = options.backingPaths[index]
    guard let head = layers[index].head,
      let name = given ?? head.backingFile, !name.isEmpty
    else { return nil }
    do throws(DiskImageError.Reason) {
      if layers.count > Self.depthLimit { throw .tooDeep(Self.depthLimit) }
      let format = try format(head, index)
      guard given != nil else { return Reference(name: name, format: format) }
      do throws(Errno) { return Reference(name: try FilePath.absolute(name), format: format) } catch
      {
        throw .open(error)
      }
    } catch { throw self.error(.backingFile(name), error, below: index) }
  }

  private func format(
    _ head: HeaderCluster, _ index: Int
  ) throws(DiskImageError.Reason) -> BackingFormat {
    if index < options.backingFormats.count { return options.backingFormats[index] }
    guard let name = head.backingFormat, !name.isEmpty else { throw .formatMissing }
    guard let format = BackingFormat(rawValue: name) else { throw .formatUnknown(name) }
    return format
  }

  private mutating func openBacking(_ reference: Reference) async throws(DiskImageError) {
    let index = layers.count - 1
    let referrer = layers[index].path
    do throws(DiskImageError.Reason) {
      let path = try ReferenceName.path(of: reference.name, from: referrer)
      let isBase = isBase(path, for: referrer)
      let file = try opener.open(
        path, for: Referrer(layers[index]), readOnly: !isBase, seen: &seen)
      let number = add(file)
      if isBase { baseIndex = layers.count }
      var layer = ChainLayer(name: reference.name, path: path, file: file, number: number)
      if reference.format == .qcow2 { layer.head = try await Self.head(of: file) }
      layers.append(layer)
    } catch { throw self.error(.backingFile(reference.name), error, below: index) }
    try await openDataFile(override: nil, readOnly: baseIndex != layers.count - 1)
  }

  /// Whether the file at `path`, which the image at `referrer` names, is to be written beside the image.
  ///
  /// A name that the user gave counts from the directory of each image that may refer to it, as in QEMU.
  private func isBase(_ path: String, for referrer: String) -> Bool {
    guard baseIndex == nil else { return false }
    switch options.writableBase {
    case nil: return false
    case .next: return true
    case .named(let name):
      guard let wanted = try? ReferenceName.path(of: name, from: referrer) else { return false }
      guard let found = try? FilePath.real(path) else { return false }
      return (try? FilePath.real(wanted)) == found
    }
  }

  /// Takes the layers from `index` on out of the chain.
  ///
  /// - Returns: A chain of their own, whose files have numbers from 0.
  mutating func split(at index: Int) -> Chain {
    var lower = self
    let kept = layers[..<index].reduce(0) { $0 + ($1.dataFile == nil ? 1 : 2) }
    lower.layers.removeFirst(index)
    lower.files.removeFirst(kept)
    lower.baseIndex = nil
    lower.options.name = layers[index].path
    lower.options.path = layers[index].path
    lower.options.readOnly = false
    var number = 0
    func next() -> UInt8? {
      defer { number += 1 }
      return number < Self.numberLimit ? UInt8(number) : nil
    }
    for layer in lower.layers.indices {
      lower.layers[layer].number = next()
      if lower.layers[layer].dataFile != nil { lower.layers[layer].dataNumber = next() }
    }
    layers.removeSubrange(index...)
    files.removeSubrange(kept...)
    return lower
  }

  // MARK: Errors

  /// What messages call a layer.
  private func subject(_ index: Int) -> DiskImageError.Subject {
    index == 0 ? .image : .backingFile(layers[index].name)
  }

  /// An error of layer `index` itself.
  func error(_ reason: DiskImageError.Reason, in index: Int) -> DiskImageError {
    error(subject(index), reason, below: index - 1)
  }

  /// An error of something that layer `index` refers to.
  private func error(
    _ subject: DiskImageError.Subject, _ reason: DiskImageError.Reason, below index: Int
  ) -> DiskImageError {
    DiskImageError(
      image: options.name, referrer: index > 0 ? layers[index].path : nil, subject: subject,
      reason: reason)
  }
}
