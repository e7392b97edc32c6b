import BlockCore
import CPlatform
import Glibc
import Synchronization
import Uring

/// Finds out whether another program, or the kernel, has a block device open.
///
/// Before Linux 7.0 the kernel tells nobody how many openers a device has. But the last close empties
/// the device's page cache, and no other close does. So the probe reads a page, closes the device,
/// opens it again and looks whether the page is still there. Users of partitions count: they keep
/// the disk open, too.
struct OpenerProbe {
  private static let pageBytes = 4096
  let path: String

  /// Whether a probe of this process still waits for its device.
  private static let isProbing = Atomic(false)

  /// Nil if that cannot be found out in so many seconds: the read waits for the host's storage, or for a
  /// queue that nobody serves, and nothing ends it but the end of the device.
  func findsOthers(within seconds: Double) -> Bool? {
    if Self.isProbing.exchange(true, ordering: .acquiringAndReleasing) { return nil }
    let answer = Answer()
    do throws(Errno) {
      try WorkerThread(name: "qublk-probe", stackBytes: 512 << 10) {
        answer.result.withLock { $0 = .some(findsOthers) }
        Self.isProbing.store(false, ordering: .releasing)
      }.detach()
    } catch {
      Self.isProbing.store(false, ordering: .releasing)
      return nil
    }
    let deadline = Deadline(seconds: seconds)
    while !deadline.hasPassed {
      if let result = answer.result.withLock({ $0 }) { return result }
      usleep(2000)
    }
    return nil
  }

  private final class Answer: Sendable {
    /// Nil until the probe has ended.
    let result = Mutex<Bool??>(nil)
  }

  /// Nil if the device cannot be read.
  private var findsOthers: Bool? {
    guard let end = size() else { return nil }
    // A damaged image may fail to read at one place.
    for offset in [0, end / 2, max(end - 1, 0)] {
      let page = offset / Self.pageBytes * Self.pageBytes
      guard read(page), let isCached = isCached(page) else { continue }
      // A machine short of memory may have dropped the page in between: once again, then.
      return isCached ? true : read(page) ? self.isCached(page) : nil
    }
    return nil
  }

  private func size() -> Int? {
    withDevice { descriptor in
      let end = lseek(descriptor, 0, Int32(SEEK_END))
      return end > 0 ? Int(end) : nil
    }
  }

  private func read(_ offset: Int) -> Bool {
    withDevice { descriptor in
      var bytes = [UInt8](repeating: 0, count: Self.pageBytes)
      let count = unsafe pread(descriptor, &bytes, bytes.count, off_t(offset))
      return count > 0 ? true : nil
    } ?? false
  }

  private func isCached(_ offset: Int) -> Bool? {
    withDevice { descriptor in
      let cached = qublk_is_cached(descriptor, UInt64(offset))
      return cached < 0 ? nil : cached == 1
    }
  }

  private func withDevice<T>(_ body: (Int32) -> T?) -> T? {
    let descriptor = unsafe qublk_open_file(path, O_RDONLY | O_NONBLOCK, 0)
    guard descriptor >= 0 else { return nil }
    defer { close(descriptor) }
    return body(descriptor)
  }
}
