import BlockCore
package import DiskImages
import Glibc
import HostFiles
import QCOW2Engine
import Uring

/// The target of a copy, before it is there.
package struct ConvertTarget {
  /// What it is.
  package var format: DiskFormat
  /// How it is opened, for writing.
  package var options: DiskImageOptions
  /// Writes are synced as the engine asks for it; else never.
  package var syncs = false
  /// Makes the target for so many bytes; nil if it is there, and stays what it is.
  package var make: ((UInt64) throws(JobError) -> Void)?
  /// What is made has its storage at once, so its length cannot tell that it is incomplete.
  package var isPreallocated = false

  /// Whether it is a block device, which keeps what it holds.
  package var isDevice: Bool {
    var status = stat()
    return unsafe stat(options.path, &status) == 0 && status.st_mode & S_IFMT == S_IFBLK
  }

  /// Whether it is a new raw file without storage, which gets its length with its last bytes.
  var growsWhileFilled: Bool {
    make != nil && format == .raw && !isPreallocated && !isDevice
  }

  /// A target that is there.
  package init(format: DiskFormat, options: DiskImageOptions) {
    self.format = format
    self.options = options
  }
}

/// Runs a ``ConvertJob``: opens the sources, makes the target, opens it, copies, closes everything.
///
/// The target is never a file of the sources. If the copy fails, a file that was made for it is removed.
/// A process that is killed leaves a new target that is plainly incomplete: an image without its magic,
/// or a raw file that is shorter than the disk.
package enum ConvertHost {
  /// Carries out a copy.
  ///
  /// - Throws: ``ConvertFailure``, which names the image that the error is about.
  package static func run(
    _ job: ConvertJob, from sources: [(format: DiskFormat, options: DiskImageOptions)],
    to target: ConvertTarget, _ context: JobContext<NoValue>
  ) throws(ConvertFailure) {
    // The sources are closed whatever happens, the target by ``fill``.
    var disks: [any OpenDisk] = []
    defer { for disk in disks { close(disk) } }
    for source in sources {
      var options = source.options
      options.readOnly = job.clears == nil
      options.engine.requiresBitmaps = true
      options.engine.workers = job.threads
      options.engine.slotsPerWorker = job.tasks
      disks.append(try open(source.format, options))
    }
    try copy(job, from: disks, to: target, context)
    // The target is durable and whole, its name too: a crash before this leaves a bitmap with too much in
    // it.
    if let bitmap = job.clears { try clear(bitmap, &disks) }
  }

  /// Carries out a copy of disks that are open, and stay so.
  ///
  /// On return the target is durable, its name too.
  ///
  /// - Throws: ``ConvertFailure``, which names the image that the error is about.
  static func copy(
    _ job: ConvertJob, from disks: [any OpenDisk], to target: ConvertTarget,
    _ context: JobContext<NoValue>
  ) throws(ConvertFailure) {
    let path = target.options.path
    let isNew = try judge(path, target, against: disks)
    let bitmaps = try bitmaps(job, disks, context)
    do throws(ConvertFailure) {
      try make(target, job.length(of: disks))
      try fill(target, job, disks, bitmaps, context)
    } catch {
      if isNew, target.make != nil { _ = unsafe unlink(path) }
      throw error
    }
    if isNew, target.syncs, let errno = DirectorySync.sync(directoryOf: path) {
      throw ConvertFailure(target.options.name, .raw(errno))
    }
  }

  /// The bitmaps that the target gets; nil for none.
  private static func bitmaps(
    _ job: ConvertJob, _ disks: [any OpenDisk], _ context: JobContext<NoValue>
  ) throws(ConvertFailure) -> BitmapCopy? {
    if job.bitmaps == .none { return nil }
    do throws(JobError) {
      return try runBlocking { () async throws(JobError) in
        try await BitmapCopy(of: disks, skipsBroken: job.bitmaps == .sound) {
          context.tell(.note($0))
        }
      }
    } catch { throw ConvertFailure(disks[0].name, error) }
  }

  private static func clear(
    _ bitmap: String, _ disks: inout [any OpenDisk]
  ) throws(ConvertFailure) {
    guard let disk = disks.popLast(), let image = (disk as? DiskImage)?.engine else { return }
    do throws(JobError) {
      try runBlocking { () async throws(JobError) in
        do throws(ImageError) { try await image.changeBitmaps(.clear(bitmap)) } catch {
          try? await disk.close()
          throw .image(error)
        }
        do throws(DiskImageError) { try await disk.close() } catch { throw .open(error) }
      }
    } catch { throw ConvertFailure(disk.name, error) }
  }

  private static func open(
    _ format: DiskFormat, _ options: DiskImageOptions
  ) throws(ConvertFailure) -> any OpenDisk {
    do throws(DiskImageError) {
      return try runBlocking { () async throws(DiskImageError) in
        try await format.open(options, size: 0)
      }
    } catch { throw ConvertFailure(options.name, .open(error)) }
  }

  /// A disk that was only read.
  private static func close(_ disk: any OpenDisk) {
    runBlocking { () in try? await disk.close() }
  }

  /// Refuses a target that is a file of the sources, by whatever name.
  ///
  /// - Returns: whether there is no such file yet.
  private static func judge(
    _ path: String, _ target: ConvertTarget, against disks: [any OpenDisk]
  ) throws(ConvertFailure) -> Bool {
    guard let key = FileIdentity(path: path) else { return true }
    for disk in disks {
      for (file, object) in zip(disk.files, disk.objects)
      where FileIdentity(descriptor: file.descriptor) == key {
        throw ConvertFailure(target.options.name, .targetIsSource(object.path))
      }
    }
    return false
  }

  private static func make(_ target: ConvertTarget, _ size: UInt64) throws(ConvertFailure) {
    guard let make = target.make else { return }
    do throws(JobError) { try make(size) } catch {
      throw ConvertFailure(target.options.name, error)
    }
  }

  private static func fill(
    _ target: ConvertTarget, _ job: ConvertJob, _ sources: [any OpenDisk], _ bitmaps: BitmapCopy?,
    _ context: JobContext<NoValue>
  ) throws(ConvertFailure) {
    var options = target.options
    options.engine.workers = job.threads
    options.engine.slotsPerWorker = job.tasks
    options.engine.arenaBytes = arenaBytes(job.length(of: sources))
    let files = TargetFiles()
    files.use(in: &options, syncs: target.syncs)
    let disk = try open(target.format, options)
    do throws(JobError) {
      try runBlocking { () async throws(JobError) in
        let length = job.length(of: sources)
        let growth = target.growsWhileFilled ? length : nil
        if let growth { (disk as? RawDisk)?.raw.presume(length: growth) }
        guard disk.target.size >= length else {
          throw .targetTooSmall(size: disk.target.size, needed: length)
        }
        if bitmaps != nil { try BitmapCopy.requireSupport(disk) }
        _ = try await job.run(on: ConvertDisks(sources, to: disk), context)
        try await bitmaps?.make(in: disk)
        try await finish(disk)
        if let image = files.image(of: disk) { try await complete(disk, image, growsTo: growth) }
      }
    } catch {
      close(disk)
      throw ConvertFailure(error.disk ?? target.options.name, error)
    }
    do throws(DiskImageError) {
      try runBlocking { () async throws(DiskImageError) in try await disk.close() }
    } catch { throw ConvertFailure(target.options.name, .open(error)) }
  }

  /// What one worker reserves at once: a small part of the target, since what is not used stays a hole.
  private static func arenaBytes(_ length: UInt64) -> UInt64 {
    min(max(length >> 8, 1 << 20), 16 << 20)
  }

  /// Makes a target that was incomplete until now plainly whole: an image gets its magic, a raw file its
  /// length.
  private static func complete(
    _ disk: any OpenDisk, _ image: TargetFile, growsTo length: UInt64?
  ) async throws(JobError) {
    do throws(Errno) {
      if let length {
        try await image.setLength(length)
      } else if disk is DiskImage {
        try await image.release()
      }
    } catch { throw .writing(disk: disk.name, at: 0, error) }
  }

  /// Writes back all that is in memory.
  private static func finish(_ disk: any OpenDisk) async throws(JobError) {
    let slot = RequestSlot(worker: 0, number: 0)
    if let errno = await disk.target.serve(BlockRequest(.flush), at: slot).errno {
      throw .writing(disk: disk.name, at: 0, errno)
    }
  }
}

/// Why a copy failed, and of which image that is told.
package struct ConvertFailure: Error {
  /// What messages call the image.
  package let image: String
  /// What is wrong.
  package let error: JobError

  init(_ image: String, _ error: JobError) {
    self.image = image
    self.error = error
  }
}

/// A file's device and inode numbers, which are the same under all of its names.
struct FileIdentity: Equatable {
  private let device: UInt64
  private let inode: UInt64

  /// The file at a path, behind symbolic links; nil if there is none.
  init?(path: String) {
    var status = stat()
    guard unsafe stat(path, &status) == 0 else { return nil }
    self.init(status)
  }

  /// An open file.
  init?(descriptor: Int32) {
    var status = stat()
    guard unsafe fstat(descriptor, &status) == 0 else { return nil }
    self.init(status)
  }

  /// A block device is known by its number: it may have several nodes.
  private init(_ status: stat) {
    let isDevice = status.st_mode & S_IFMT == S_IFBLK
    device = isDevice ? UInt64.max : UInt64(status.st_dev)
    inode = isDevice ? UInt64(status.st_rdev) : UInt64(status.st_ino)
  }
}
