import BlockCore
import CPlatform
import Glibc
import HostFiles

/// What tells whether two files are the same one.
enum FileKey: Hashable, Sendable {
  case file(device: UInt64, inode: UInt64)
  /// A block device, by its number: it may have several nodes.
  case device(UInt64)

  /// The same of the file at a path; nothing is opened for reading or writing.
  init(path: String) throws(DiskImageError.Reason) {
    let handle = unsafe qublk_open_path(path)
    if handle < 0 { throw .open(Errno(-handle)) }
    defer { close(handle) }
    try self.init(handle)
  }

  /// - Throws: ``DiskImageError/Reason/notAFile`` for everything else.
  init(_ descriptor: Int32) throws(DiskImageError.Reason) {
    var status = stat()
    guard unsafe fstat(descriptor, &status) == 0 else { throw .inspect(Errno(errno)) }
    switch status.st_mode & S_IFMT {
    case S_IFREG: self = .file(device: UInt64(status.st_dev), inode: UInt64(status.st_ino))
    case S_IFBLK: self = .device(UInt64(status.st_rdev))
    default: throw .notAFile
    }
  }
}

/// Opens files that images refer to.
struct ChainFileOpener {
  let options: DiskImageOptions

  /// Opens and locks the file at `path`, which an image names.
  ///
  /// First only its name is taken (O_PATH), which has no effect on a device or a FIFO; kind, policy
  /// and `seen` are judged on that, and then the very same file is opened [SEC-3, SEC-4].
  ///
  /// - Parameters:
  ///   - path: An absolute path.
  ///   - referrer: nil if the user named the file: the policy has no say.
  ///   - readOnly: No writes; the lock is then a reader's.
  ///   - seen: The files of the chain so far, to which this one is added.
  /// - Returns: The open file, which is the caller's to close.
  /// - Throws: What is wrong with it; nothing then stays open.
  func open(
    _ path: String, for referrer: Referrer?, readOnly: Bool, seen: inout Set<FileKey>
  ) throws(DiskImageError.Reason) -> RingHostFile {
    let handle = unsafe qublk_open_path(path)
    if handle < 0 { throw .open(Errno(-handle)) }
    defer { close(handle) }
    let key = try FileKey(handle)
    if let referrer { try judge(handle, path, referrer) }
    guard seen.insert(key).inserted else { throw .repeated }
    let file = try openFile("/proc/self/fd/\(handle)", readOnly: readOnly)
    do throws(DiskImageError.Reason) { try lock(file, readOnly: readOnly) } catch {
      file.closeDescriptor()
      throw error
    }
    return file
  }

  private func judge(
    _ handle: Int32, _ path: String, _ referrer: Referrer
  ) throws(DiskImageError.Reason) {
    if options.backingPolicy == .any { return }
    let real: String
    do throws(Errno) { real = try FilePath.real("/proc/self/fd/\(handle)") } catch {
      throw .inspect(error)
    }
    if options.backingPolicy.allows(real, for: referrer) { return }
    throw options.backingPolicy.isDefault
      ? .notTrusted(real, owner: referrer.owner) : .notAllowed(real)
  }

  func openFile(_ path: String, readOnly: Bool) throws(DiskImageError.Reason) -> RingHostFile {
    do throws(HostFileError) {
      if let descriptor = options.held?.descriptor(of: path, readOnly: readOnly) {
        do throws(HostFileError) {
          return try RingHostFile.adopt(
            descriptor, readOnly: readOnly, mode: options.mode, granularity: options.granularity,
            isHeld: true)
        } catch {
          close(descriptor)
          throw error
        }
      }
      return try RingHostFile.open(
        path, readOnly: readOnly, mode: options.mode, granularity: options.granularity)
    } catch {
      switch error {
      case .open(let errno): throw .open(errno)
      case .inUse(let use): throw .deviceInUse(use)
      case .inspect(let errno): throw .inspect(errno)
      case .notAFile: throw .notAFile
      }
    }
  }

  func lock(_ file: RingHostFile, readOnly: Bool) throws(DiskImageError.Reason) {
    guard options.locks == .qemu else { return }
    if file.isHeld { return }
    do throws(ImageLockError) {
      try ImageLock.acquire(readOnly ? .reader : .writer, descriptor: file.descriptor)
    } catch { throw .lock(error) }
  }
}
