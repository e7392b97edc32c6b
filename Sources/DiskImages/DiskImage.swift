package import BlockCore
import Glibc
package import HostFiles
package import QCOW2Engine
import QCOW2Format
package import QCOW2Tools

/// An open qcow2 image with everything that it refers to: backing chain and data files.
package final class DiskImage: OpenDisk {
  package let engine: Image
  /// Every file of the chain, by number.
  ///
  /// 0 is the image; data files and backing files follow. Those from 255 on have no number that
  /// host transfers could name.
  package let files: [RingHostFile]
  package let objects: [HostObject]
  /// `st_dev` and `st_ino` of the image.
  package let identity: (device: UInt64, inode: UInt64)
  /// The images and raw files below the image.
  package let backingDepth: Int
  /// Whether the image itself is encrypted.
  package let isEncrypted: Bool
  /// What was done to the refcounts of an image that was marked dirty; nil if it was not.
  package let rebuilt: String?
  package let name: String
  /// The backing files, from the image's own down; none that another disk has taken over.
  package let backingFiles: [OpenBackingFile]
  /// The names of the layers and of their data files, as they stand in what refers to them.
  private let layerNames: [(file: String, data: String?)]

  package let target: any BlockTarget
  package var allocationUnit: UInt64 { engine.geometry.clusterSize }
  package var warnings: [String] {
    (rebuilt.map { ["image was marked dirty: \($0)"] } ?? []) + engine.bitmaps.warnings
  }
  package func maintain() async { await engine.maintain() }

  package func status(
    at offset: GuestOffset, length: UInt64
  ) async throws(ImageError) -> BlockStatus { try await engine.status(at: offset, length: length) }

  /// Whether the page cache is bypassed for every file.
  package var isDirect: Bool { files.allSatisfy(\.isDirect) }

  /// The bytes of the image file, for reading, as the host has them; they lag behind the engine.
  package func imageBytes() throws(ToolError) -> FileBytes {
    let reader: Int32
    do throws(Errno) { reader = try files[0].reader() } catch { throw .host(.open, errno: error) }
    return try FileBytes(adopting: reader)
  }

  private init(
    _ engines: Engines, _ chain: Chain, _ identity: (device: UInt64, inode: UInt64)
  ) {
    engine = engines.top
    target = chain.options.detectZeroes.applied(to: engines.top)
    rebuilt = engines.rebuilt?.text
    backingFiles = zip(chain.layers.dropFirst(), engines.backing).map {
      OpenBackingFile(layer: $1, isRaw: $0.head == nil, file: $0.file)
    }
    self.identity = identity
    files = chain.files
    objects = chain.objects
    backingDepth = chain.layers.count - 1
    isEncrypted = engine.header.cryptMethod != 0
    name = chain.options.name
    layerNames = chain.layers.map { ($0.name, $0.dataName) }
  }

  /// What the files with the guest's data are called, by the depth of their layer: relative names of
  /// backing files count from what refers to them, as QEMU shows them.
  ///
  /// - Parameter top: What the image itself is called.
  /// - Returns: A name for each layer of the chain, from the top down.
  package func dataFileNames(top: String) -> [String] {
    var names: [String] = []
    var last = top
    for (depth, layer) in layerNames.enumerated() {
      if depth > 0 {
        let path = try? ReferenceName.path(of: layer.file, from: last)
        last = path ?? layer.file
      }
      names.append(layer.data ?? last)
    }
    return names
  }

  /// Opens, locks, and reads the metadata of everything; on failure nothing stays open.
  ///
  /// Blocks for most of its work, whatever thread it is called on: see `runBlocking`.
  package static func open(
    _ options: DiskImageOptions
  ) async throws(DiskImageError) -> DiskImage {
    var chain = Chain(options)
    defer { if !options.keepsSecrets { _ = options.secrets.dropRest() } }
    do throws(DiskImageError) {
      try await chain.open()
      try await chain.unlock()
      return try await open(chain)
    } catch {
      chain.close()
      throw error
    }
  }

  /// Opens the engines of a chain whose files are open and unlocked; on failure they stay open.
  ///
  /// - Parameters:
  ///   - chain: The files.
  ///   - bottom: What lies below them; nil for nothing.
  /// - Returns: The disk, which owns the files.
  /// - Throws: What is wrong with the metadata of a layer.
  static func open(
    _ chain: Chain, upon bottom: (any BackingLayer)? = nil
  ) async throws(DiskImageError) -> DiskImage {
    let identity = try identity(of: chain)
    let fence = chain.options.ignoresBacking ? FencedLayer() : nil
    let disk = DiskImage(try await openEngines(chain, upon: bottom ?? fence), chain, identity)
    disk.reportOpening(chain.options.events)
    return disk
  }

  /// Writes back what is in memory, makes it durable, and lets go of all files and their locks.
  ///
  /// The latter whether or not the former worked. No request may be running.
  package func close() async throws(DiskImageError) {
    defer { Chain.close(files) }
    do throws(ImageError) { try await engine.close() } catch {
      throw DiskImageError(image: name, referrer: nil, subject: .image, reason: .engine(error))
    }
  }

  /// Has the events of opening counted; what the user is to read of them is in ``warnings``.
  private func reportOpening(_ events: ImageEvents?) {
    guard let events, let object = objects.first else { return }
    if let rebuilt {
      events.report(ImageEvent(.refcountsRebuilt, object, problem: rebuilt))
    }
    for warning in engine.bitmaps.warnings {
      events.report(ImageEvent(.bitmapDropped, object, problem: warning))
    }
  }

  private static func identity(
    of chain: Chain
  ) throws(DiskImageError) -> (device: UInt64, inode: UInt64) {
    var status = stat()
    guard unsafe fstat(chain.layers[0].file.descriptor, &status) == 0 else {
      throw chain.error(.inspect(Errno(errno)), in: 0)
    }
    return (UInt64(status.st_dev), UInt64(status.st_ino))
  }

  /// The engines of a chain.
  private struct Engines {
    let top: Image
    let rebuilt: RefcountChanges?
    /// From the top down.
    let backing: [any BackingLayer]
  }

  /// Opens the engines from the bottom up, each upon the one before.
  private static func openEngines(
    _ chain: Chain, upon bottom: (any BackingLayer)?
  ) async throws(DiskImageError) -> Engines {
    var backing = bottom
    var layers: [any BackingLayer] = []
    let images = chain.layers.dropFirst().count { $0.head != nil }
    for index in chain.layers.indices.dropFirst().reversed() {
      do throws(ImageError) {
        let next = try await layer(
          chain.layers[index], upon: backing, chain.options, images: images)
        backing = next
        layers.insert(next, at: 0)
      } catch { throw chain.error(.engine(error), in: index) }
    }
    let top = chain.layers[0]
    do throws(DiskImageError.Reason) {
      let (image, rebuilt) = try await DirtyImage.open(
        sources(top, backing, chain.options), top.file,
        options(chain.options.engine, for: top, .image, chain.options))
      return Engines(top: image, rebuilt: rebuilt, backing: layers)
    } catch { throw chain.error(error, in: 0) }
  }

  /// `images` is the number of the chain's backing files that are images.
  private static func layer(
    _ layer: ChainLayer, upon backing: (any BackingLayer)?, _ options: DiskImageOptions,
    images: Int
  ) async throws(ImageError) -> any BackingLayer {
    guard layer.head != nil else {
      let length: UInt64
      do throws(Errno) { length = try await layer.file.length() } catch {
        throw .io(.length, at: HostOffset(0), error)
      }
      return RawLayer(
        options.engineFile(layer.file), length: length, fileNumber: layer.number,
        reporter: reporter(layer, .backingFile, options))
    }
    var shared = ImageOptions()
    shared.readOnly = true
    shared.workers = options.engine.workers
    shared.slotsPerWorker = options.engine.slotsPerWorker
    shared.cacheBytes = cacheBytes(forEachOf: images, options.engine)
    shared = Self.options(shared, for: layer, .backingFile, options)
    return ImageLayer(try await Image.open(sources(layer, backing, options), options: shared))
  }

  /// The backing images have together what the image itself has: each has one cache for all
  /// workers.
  ///
  /// A long chain takes no more memory than a short one, down to 16 slices of 4 KiB each.
  static func cacheBytes(forEachOf images: Int, _ options: ImageOptions) -> Int? {
    if images < 2 { return options.cacheBytes }
    return max((options.cacheBytes ?? ImageOptions.standardCacheBytes) / images, 64 << 10)
  }

  /// Options of an engine, with a reporter for its layer.
  private static func options(
    _ engine: ImageOptions, for layer: ChainLayer, _ role: HostObject.Role,
    _ options: DiskImageOptions
  ) -> ImageOptions {
    var engine = engine
    engine.reporter = reporter(layer, role, options)
    return engine
  }

  private static func reporter(
    _ layer: ChainLayer, _ role: HostObject.Role, _ options: DiskImageOptions
  ) -> EventReporter? {
    options.events.map {
      EventReporter($0, HostObject(role, path: layer.path), dataFile: layer.dataPath)
    }
  }

  private static func sources(
    _ layer: ChainLayer, _ backing: (any BackingLayer)?, _ options: DiskImageOptions
  ) -> ImageSources {
    var sources = ImageSources(
      file: options.engineFile(layer.file), dataFile: layer.dataFile.map(options.engineFile),
      backing: backing, cipher: layer.cipher)
    if options.keepsEngineFiles {
      sources.fileNumber = nil
    } else {
      sources.fileNumber = layer.dataFile == nil ? layer.number : layer.dataNumber
    }
    return sources
  }
}
