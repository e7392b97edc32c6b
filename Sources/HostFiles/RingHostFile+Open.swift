import BlockCore
import CPlatform
import Glibc

/// How a host file's data travels.
package enum HostFileMode: Sendable {
  /// O_DIRECT where the file can do it; buffered elsewhere.
  case direct
  /// Through the host's page cache.
  case buffered
}

extension RingHostFile {
  /// Opens a regular file or a block device.
  ///
  /// Never creates, never waits for a FIFO or a device to appear. A block device is opened for writing
  /// exclusively (O_EXCL), and stays claimed until ``closeDescriptor()``: nobody can mount it meanwhile.
  ///
  /// - Parameters:
  ///   - path: The file's path.
  ///   - readOnly: No writes; the file is opened O_RDONLY.
  ///   - mode: What is wanted; ``isDirect`` says what came out.
  ///   - granularity: The largest offset alignment that the caller can keep to, in bytes. A file
  ///     whose direct I/O needs more is opened buffered.
  /// - Returns: The open file.
  /// - Throws: ``HostFileError``; ``HostFileError/inUse(_:)`` for a block device that others have
  ///   claimed.
  package static func open(
    _ path: String, readOnly: Bool, mode: HostFileMode = .direct, granularity: Int = 512
  ) throws(HostFileError) -> RingHostFile {
    let descriptor = unsafe qublk_open(path, readOnly ? 1 : 0, 0)
    if descriptor < 0 {
      let error = Errno(-descriptor)
      if error == .busy, !readOnly, let use = BlockDeviceUse.find(path) { throw .inUse(use) }
      throw .open(error)
    }
    do throws(HostFileError) {
      return try adopt(descriptor, readOnly: readOnly, mode: mode, granularity: granularity)
    } catch {
      close(descriptor)
      throw error
    }
  }

  /// The same for a descriptor that is open already; takes it over unless it throws.
  ///
  /// With `isHeld`, the open file description is another process's too, and its locks are not given up.
  package static func adopt(
    _ descriptor: Int32, readOnly: Bool, mode: HostFileMode = .direct, granularity: Int = 512,
    isHeld: Bool = false
  ) throws(HostFileError) -> RingHostFile {
    let kind = qublk_file_kind(descriptor)
    if kind < 0 { throw .inspect(Errno(-kind)) }
    if kind == 0 { throw .notAFile }
    var alignment: DirectAlignment?
    if mode == .direct { alignment = directAlignment(descriptor, granularity: granularity) }
    let traits = HostFileTraits(
      isBlockDevice: kind == 2, offsetAlignment: alignment?.offset ?? 1, isReadOnly: readOnly)
    return RingHostFile(
      descriptor: descriptor, traits: traits, isDirect: alignment != nil,
      memoryAlignment: alignment?.memory ?? 1, isHeld: isHeld,
      clearsAtOnce: kind == 2 && qublk_discards(descriptor) != 0)
  }

  struct DirectAlignment {
    var memory: Int
    var offset: Int
  }

  /// Switches direct I/O on if the file can do it at `granularity`; nil leaves it buffered.
  static func directAlignment(_ descriptor: Int32, granularity: Int) -> DirectAlignment? {
    var memory: UInt32 = 0
    var offset: UInt32 = 0
    let known = unsafe qublk_dio_alignment(descriptor, &memory, &offset) == 0
    if known && (offset == 0 || Int(offset) > granularity) { return nil }
    guard qublk_set_direct(descriptor, 1) == 0 else { return nil }
    if known { return DirectAlignment(memory: max(Int(memory), 1), offset: Int(offset)) }
    if let probed = probe(descriptor), probed <= granularity {
      return DirectAlignment(memory: probed, offset: probed)
    }
    _ = qublk_set_direct(descriptor, 0)
    return nil
  }

  /// The smaller of 512 and 4096 with which an aligned read works; nil if neither does.
  private static func probe(_ descriptor: Int32) -> Int? {
    let buffer = IOBuffer(count: 8192)
    for size in [512, 4096] where unsafe pread(descriptor, buffer.base + size, size, 0) >= 0 {
      return size
    }
    return nil
  }
}
