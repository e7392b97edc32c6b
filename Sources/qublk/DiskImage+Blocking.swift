import DiskImages
import Uring

/// For the control thread of a daemon, and for commands.
extension DiskImage {
  /// Opens an image and all that it refers to on the calling thread; on failure nothing stays open.
  static func openBlocking(_ options: DiskImageOptions) throws(CommandError) -> DiskImage {
    do throws(DiskImageError) {
      return try runBlocking { () async throws(DiskImageError) in try await open(options) }
    } catch { throw .disk(error) }
  }

  /// Writes back what is in memory, makes it durable, and lets go of the files and their locks.
  func closeBlocking() throws(CommandError) {
    do throws(DiskImageError) {
      try runBlocking { () async throws(DiskImageError) in try await self.close() }
    } catch { throw .disk(error) }
  }
}
