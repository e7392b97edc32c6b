package import BlockCore
import Glibc
package import HostFiles
package import QCOW2Engine
import QCOW2Format
import QCOW2Tools

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
  private let name: String

  package var target: any BlockTarget { engine }
  package var allocationUnit: UInt64 { engine.geometry.clusterSize }
  package var warnings: [String] {
    (rebuilt.map { ["image was marked dirty: \($0)"] } ?? []) + engine.bitmaps.warnings
  }
  package func maintain() async { await engine.maintain() }

  /// Whether the page cache is bypassed for every file.
  package var isDirect: Bool { files.allSatisfy(\.isDirect) }

  private init(
    _ engine: Image, _ rebuilt: RefcountChanges?, _ chain: Chain,
    _ identity: (device: UInt64, inode: UInt64)
  ) {
    self.engine = engine
    self.rebuilt = rebuilt?.text
    self.identity = identity
    files = chain.files
    objects = chain.objects
    backingDepth = chain.layers.count - 1
    isEncrypted = engine.header.cryptMethod != 0
    name = chain.options.name
  }

  /// Opens, locks, and reads the metadata of everything; on failure nothing stays open.
  ///
  /// Blocks for most of its work, whatever thread it is called on: see `runBlocking`.
  package static func open(
    _ options: DiskImageOptions
  ) async throws(DiskImageError) -> DiskImage {
    var chain = Chain(options)
    defer { _ = options.secrets.dropRest() }
    do throws(DiskImageError) {
      try await chain.open()
      try await chain.unlock()
      let identity = try identity(of: chain)
      let (engine, rebuilt) = try await openEngines(chain)
      let disk = DiskImage(engine, rebuilt, chain, identity)
      disk.reportOpening(options.events)
      return disk
    } catch {
      chain.close()
      throw error
    }
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

  /// Opens the engines from the bottom up, each upon the one before.
  private static func openEngines(
    _ chain: Chain
  ) async throws(DiskImageError) -> (Image, RefcountChanges?) {
    var backing: (any BackingLayer)?
    let images = chain.layers.dropFirst().count { $0.head != nil }
    for index in chain.layers.indices.dropFirst().reversed() {
      do throws(ImageError) {
        backing = try await layer(
          chain.layers[index], upon: backing, chain.options, images: images)
      } catch { throw chain.error(.engine(error), in: index) }
    }
    let top = chain.layers[0]
    do throws(DiskImageError.Reason) {
      return try await DirtyImage.open(
        sources(top, backing, chain.options), top.file,
        options(chain.options.engine, for: top, .image, chain.options))
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
    sources.fileNumber = layer.dataFile == nil ? layer.number : layer.dataNumber
    return sources
  }
}
