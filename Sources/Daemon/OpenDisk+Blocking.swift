package import DiskImages
import Uring

/// For the control thread of a daemon, and for commands.
extension OpenDisk {
  /// Writes back what is in memory, makes it durable, and lets go of the files and their locks.
  package func closeBlocking() throws(CommandError) {
    do throws(DiskImageError) {
      try runBlocking { () async throws(DiskImageError) in try await self.close() }
    } catch { throw .disk(error) }
  }
}

extension DiskFormat {
  /// Opens a disk and all that it refers to on the calling thread; on failure nothing stays open.
  package func openBlocking(
    _ options: DiskImageOptions, size: UInt64 = 0
  ) throws(CommandError) -> any OpenDisk {
    do throws(DiskImageError) {
      return try runBlocking { () async throws(DiskImageError) in
        try await open(options, size: size)
      }
    } catch { throw .disk(error) }
  }
}

extension AttachRequest {
  /// Opens what is to be served.
  func openDisk() throws(CommandError) -> any OpenDisk {
    try format.openBlocking(disk, size: nullSize)
  }
}
