import BlockCore
import CPlatform
import Glibc
import HostFiles

/// What makes a process fit to serve a block device (docs/design.md, section 7).
enum Hygiene {
  /// Leaves the user's mount namespace for one of its own, with nothing mounted that a server does
  /// not need [UBLK-2].
  ///
  /// A server that died inside a namespace in which its own device is mounted would have to serve
  /// the unmount of its own file system on the way out. And a copy of the user's mounts would keep
  /// alive what the user unmounts later, a file system on another qublk device for one, which
  /// then could never be detached. Files that are open stay usable. Namespaces belong to threads:
  /// to be called while there is one only.
  static func enterPrivateMounts() throws(CommandError) {
    precondition(directoryEntries("/proc/self/task").count <= 1, "a thread too early")
    if qublk_process_private_mounts() < 0 { throw .hygiene(.mountNamespace, Errno(errno)) }
    let needed: Set = ["/", "/dev", "/proc", "/sys", "/run", StateDirectory.root]
    for place in MountTable.places().reversed() where !needed.contains(place) {
      _ = unsafe qublk_detach_mount(place)  // gone already, or below one that is
    }
  }

  /// Marks the control thread as part of the I/O path: its allocations never wait for write-back
  /// to its own device [UBLK-1].
  ///
  /// Set, and seen in the kernel's flags of the thread; workers set and check their own.
  static func setIOFlusher() throws(CommandError) {
    let result = qublk_set_io_flusher(1)
    if result < 0 { throw .hygiene(.flusher, Errno(-result)) }
    var flags: UInt32 = 0
    let wanted = UInt32(QUBLK_IO_FLUSHER_FLAGS)
    guard unsafe qublk_thread_flags(&flags) == 0, flags & wanted == wanted else {
      throw .flusherNotSet
    }
  }

  /// Takes away an inherited limit of processor time (`ulimit -t`), at which the system would end the
  /// daemon.
  static func liftTimeLimit() throws(CommandError) {
    if qublk_process_lift_time_limit() < 0 { throw .hygiene(.timeLimit, Errno(errno)) }
  }

  /// Marks the process as a storage daemon, by an "@" in front of its command line: at the end of a
  /// shutdown systemd kills all processes but these, and unmounts what is left [UBLK-25].
  static func markAsStorageDaemon() {
    // The words that the kernel shows in /proc: Swift's CommandLine has copies.
    if let word = unsafe qublk_argument(0), unsafe word.pointee != 0 {
      unsafe UnsafeMutablePointer(mutating: word).pointee = CChar(UInt8(ascii: "@"))
    }
  }

  /// No core dump is written of a process that has the keys of an image; and only root can look into it
  /// [SEC-8].
  static func forbidCoreDump() throws(CommandError) {
    let result = qublk_forbid_core_dump()
    if result < 0 { throw .hygiene(.coreDump, Errno(-result)) }
  }

  /// Keeps what is touched in memory, and the process from being chosen when memory runs out.
  ///
  /// Best effort: both need rights that a container may not give, and a device works without.
  ///
  /// - Returns: What did not work, for the log.
  static func protectMemory() -> [String] {
    var failures: [String] = []
    let result = qublk_lock_memory_on_fault()
    if result < 0 { failures.append("cannot lock memory: \(Errno(-result))") }
    let file = "/proc/self/oom_score_adj"
    let descriptor = unsafe qublk_open_file(file, O_WRONLY, 0)
    if descriptor < 0 || !writeAll(descriptor, "-1000") {
      failures.append("\(file): cannot write: \(Errno(errno))")
    }
    if descriptor >= 0 { close(descriptor) }
    return failures
  }
}
