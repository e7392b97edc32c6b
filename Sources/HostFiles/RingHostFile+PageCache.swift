import CPlatform
import Glibc
import Uring

extension RingHostFile {
  /// Empties the page cache of a file that is used with direct I/O.
  ///
  /// For as long as a single page is cached, the kernel searches the cache at each direct write. Returns
  /// at once: a thread does it, since much may have to be written back. Best effort.
  package func dropPageCache() {
    guard isDirect else { return }
    // A descriptor of its own: a failure of the write-back must still be seen by the next sync of ours.
    let own = unsafe qublk_open_file("/proc/self/fd/\(descriptor)", O_RDONLY, 0)
    guard own >= 0 else { return }
    let thread = try? WorkerThread(name: "qublk-cache") {
      _ = qublk_write_back(own)
      posix_fadvise(own, 0, 0, POSIX_FADV_DONTNEED)
      close(own)
    }
    if let thread { thread.detach() } else { close(own) }
  }
}
