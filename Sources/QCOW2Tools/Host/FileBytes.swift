package import BlockCore
import CPlatform
import Glibc
import QCOW2Format

/// An image in a regular file or block device, read and written with blocking calls.
package final class FileBytes: WritableImageBytes {
  /// How the file is opened.
  package enum Access: Equatable, Sendable {
    case readOnly
    /// For reading and writing; must exist.
    case readWrite
    /// The same, beside another descriptor of this process: that one has the block device claimed.
    case readWriteHeld
    /// For reading and writing; made if it does not exist. Never truncated by the open.
    case create
  }

  /// Called with the open descriptor before anything is read or written; the place for the
  /// QEMU-compatible locks, which this module knows nothing of.
  package typealias Locker = (Int32) throws(ToolError) -> Void

  package let descriptor: Int32
  package let isBlockDevice: Bool
  /// The open made the file: a failed create removes it again.
  package let isNew: Bool
  package private(set) var length: UInt64
  /// Bytes of storage that the host has given to the file.
  package let allocatedBytes: UInt64

  /// Opens `path`, accepting only regular files and block devices.
  ///
  /// A FIFO or a device without a partner cannot hang the call [SEC-4]. A block device is opened for
  /// writing exclusively: ``ToolError/deviceInUse`` if it is mounted or has another use.
  package init(
    path: String, access: Access, lock: Locker = { _ throws(ToolError) in }
  ) throws(ToolError) {
    (descriptor, isNew) = try Self.open(path, access)
    do throws(ToolError) {
      let status = try Self.status(of: descriptor)
      isBlockDevice = status.st_mode & S_IFMT == S_IFBLK
      guard isBlockDevice || status.st_mode & S_IFMT == S_IFREG else { throw .notRegularFile }
      allocatedBytes = UInt64(max(0, status.st_blocks)) &* 512
      try lock(descriptor)
      length = isBlockDevice ? try Self.end(of: descriptor) : UInt64(max(0, status.st_size))
    } catch {
      // The first error is the one to report.
      if isNew { _ = unsafe unlink(path) }
      _ = Glibc.close(descriptor)
      throw error
    }
  }

  /// Reads a regular file or block device that is open.
  ///
  /// Locks are the caller's.
  ///
  /// - Parameter open: A descriptor that is the object's from now on, also after an error.
  /// - Throws: ``ToolError/host(_:errno:)``.
  package init(adopting open: Int32) throws(ToolError) {
    descriptor = open
    isNew = false
    do throws(ToolError) {
      let status = try Self.status(of: descriptor)
      isBlockDevice = status.st_mode & S_IFMT == S_IFBLK
      allocatedBytes = UInt64(max(0, status.st_blocks)) &* 512
      length = isBlockDevice ? try Self.end(of: descriptor) : UInt64(max(0, status.st_size))
    } catch {
      _ = Glibc.close(descriptor)
      throw error
    }
  }

  deinit { _ = Glibc.close(descriptor) }  // durable already: sync() came before

  private static func open(
    _ path: String, _ access: Access
  ) throws(ToolError) -> (Int32, isNew: Bool) {
    let flags = O_CLOEXEC | O_NONBLOCK | O_NOCTTY
    if access != .create { return (try existing(path, access, .open), false) }
    let made = unsafe Glibc.open(path, flags | O_RDWR | O_CREAT | O_EXCL, 0o644)
    if made >= 0 { return (made, true) }
    guard errno == EEXIST else { throw .host(.create, errno: Errno(errno)) }
    return (try existing(path, access, .create), false)
  }

  private static func existing(
    _ path: String, _ access: Access, _ operation: HostOperation
  ) throws(ToolError) -> Int32 {
    let isReadOnly: Int32 = access == .readOnly ? 1 : 0
    let descriptor = unsafe qublk_open(path, isReadOnly, access == .readWriteHeld ? 1 : 0)
    if descriptor >= 0 { return descriptor }
    let error = Errno(-descriptor)
    // Of the files that can be opened here, only a block device is ever busy.
    if error == .busy && access != .readOnly { throw .deviceInUse }
    throw .host(operation, errno: error)
  }

  private static func status(of descriptor: Int32) throws(ToolError) -> stat {
    var status = stat()
    guard unsafe fstat(descriptor, &status) == 0 else { throw .host(.stat, errno: Errno(errno)) }
    return status
  }

  private static func end(of descriptor: Int32) throws(ToolError) -> UInt64 {
    let end = lseek(descriptor, 0, SEEK_END)
    guard end >= 0 else { throw .host(.stat, errno: Errno(errno)) }
    return UInt64(end)
  }

  package func read(
    into buffer: UnsafeMutableRawBufferPointer, at offset: HostOffset
  ) throws(ToolError) {
    var done = 0
    while done < buffer.count {
      let (position, overflow) = offset.bytes.addingReportingOverflow(UInt64(done))
      guard !overflow, position < length else { break }
      let part = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[done...])
      let count = unsafe pread(descriptor, part.baseAddress, part.count, off_t(position))
      if count < 0 && errno == EINTR { continue }
      guard count >= 0 else { throw .host(.read(at: offset), errno: Errno(errno)) }
      if count == 0 { break }
      done += count
    }
    let rest = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[done...])
    unsafe rest.initializeMemory(as: UInt8.self, repeating: 0)
  }

  package func write(_ buffer: UnsafeRawBufferPointer, at offset: HostOffset) throws(ToolError) {
    guard offset.bytes < FormatLimit.hostOffset else {
      throw .host(.write(at: offset), errno: .fileTooBig)
    }
    var done = 0
    while done < buffer.count {
      let part = unsafe UnsafeRawBufferPointer(rebasing: buffer[done...])
      let count = unsafe pwrite(
        descriptor, part.baseAddress, part.count, off_t(offset.bytes) + off_t(done))
      if count < 0 && errno == EINTR { continue }
      guard count > 0 else {
        throw .host(.write(at: offset), errno: count == 0 ? .io : Errno(errno))
      }
      done += count
    }
    length = max(length, offset.bytes + UInt64(buffer.count))
  }

  package func setLength(_ length: UInt64) throws(ToolError) {
    guard length <= UInt64(Int64.max) else {
      throw .host(.setLength(length), errno: .fileTooBig)
    }
    var result: Int32
    repeat { result = ftruncate(descriptor, off_t(length)) } while result != 0 && errno == EINTR
    guard result == 0 else { throw .host(.setLength(length), errno: Errno(errno)) }
    self.length = length
  }

  package func allocate(_ length: UInt64) throws(ToolError) {
    guard length > 0, !isBlockDevice else { return }
    guard length <= UInt64(Int64.max) else {
      throw .host(.allocate(length), errno: .fileTooBig)
    }
    var result: Int32
    repeat { result = posix_fallocate(descriptor, 0, off_t(length)) } while result == EINTR
    guard result == 0 else { throw .host(.allocate(length), errno: Errno(result)) }
    self.length = max(self.length, length)
  }

  package func sync() throws(ToolError) {
    var result: Int32
    repeat { result = fsync(descriptor) } while result != 0 && errno == EINTR
    guard result == 0 else { throw .host(.sync, errno: Errno(errno)) }
  }
}
