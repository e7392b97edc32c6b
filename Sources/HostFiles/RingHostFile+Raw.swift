import BlockCore
import CPlatform
import Glibc
import Uring

/// One kernel operation each, on the worker's ring or blocking; results as io_uring gives them.
extension RingHostFile {
  func rawRead(_ data: DataBuffer, at offset: UInt64) async -> Int32 {
    if let loop = WorkerLoop.current {
      return await loop.perform(.read(loop.file(descriptor), into: data, at: offset))
    }
    guard let memory = unsafe data.memory else { return -Errno.invalid.code }
    return unsafe Self.outcome(pread(descriptor, memory, data.count, off_t(offset)))
  }

  func rawWrite(_ data: DataBuffer, at offset: UInt64) async -> Int32 {
    if let loop = WorkerLoop.current {
      return await loop.perform(.write(loop.file(descriptor), from: data, at: offset))
    }
    guard let memory = unsafe data.memory else { return -Errno.invalid.code }
    return unsafe Self.outcome(pwrite(descriptor, memory, data.count, off_t(offset)))
  }

  func rawSync() async -> Int32 {
    if let loop = WorkerLoop.current {
      return await loop.perform(.dataSync(loop.file(descriptor)))
    }
    return Self.outcome(Int(fdatasync(descriptor)))
  }

  func rawAllocate(mode: Int32, at offset: UInt64, length: UInt64) async -> Int32 {
    if let loop = WorkerLoop.current {
      return await loop.perform(
        .allocate(loop.file(descriptor), mode: mode, at: offset, length: length))
    }
    return qublk_fallocate(descriptor, mode, offset, length)
  }

  /// Blocks briefly on a worker whose kernel has no asynchronous ftruncate (before Linux 6.9).
  func rawTruncate(to length: UInt64) async -> Int32 {
    if let loop = WorkerLoop.current {
      let result = await loop.perform(.truncate(loop.file(descriptor), to: length))
      if result != -Errno.invalid.code { return result }
    }
    return Self.outcome(Int(ftruncate(descriptor, off_t(length))))
  }

  /// Turns the C library's -1 and errno into a negative errno.
  private static func outcome(_ result: Int) -> Int32 {
    result < 0 ? -errno : Int32(truncatingIfNeeded: result)
  }
}
