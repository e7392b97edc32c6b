import CPlatform
import Glibc
import Synchronization
import Uring

extension RingHostFile {
  /// Empties the page cache of a file that is used with direct I/O.
  ///
  /// For as long as a single page is cached, the kernel searches the cache at each direct write. Returns
  /// at once: a thread does it, since much may have to be written back; ``closeDescriptor()`` waits for
  /// its end. Best effort; once for each file.
  package func dropPageCache() {
    guard isDirect else { return }
    cacheDrop.withLock { running in
      if running != nil { return }
      // A descriptor of its own: a failure of the write-back must still be seen by the next sync of ours.
      guard let own = try? reader() else { return }
      running = try? WorkerThread(name: "qublk-cache") {
        _ = qublk_write_back(own)
        posix_fadvise(own, 0, 0, POSIX_FADV_DONTNEED)
        close(own)
      }
      if running == nil { close(own) }
    }
  }

  /// Waits until ``dropPageCache()`` has let go of the file.
  ///
  /// Else a block device would still be open, and its owner told that it is busy, after we have said
  /// that we are done with it.
  func endCacheDrop() {
    let thread = cacheDrop.withLock { running in
      defer { running = nil }
      return running
    }
    thread?.join()
  }
}
