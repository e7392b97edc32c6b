import BlockCore
import CPlatform
import Glibc
import HostFiles
import JSON
import Reports

/// The files of one device, /run/qublk/ID: `state.json`, `control` (socket), `log` and `lock`.
///
/// The daemon holds `lock` as long as it lives, however it ends, so whether a device has its daemon
/// is never a question about process numbers.
package struct StateDirectory {
  static let root = "/run/qublk"

  let id: UInt32

  /// The directory of the device with this number.
  package init(id: UInt32) { self.id = id }

  var path: String { "\(Self.root)/\(id)" }
  /// Where the daemon listens.
  package var controlSocket: String { "\(path)/control" }
  var log: String { "\(path)/log" }
  private var state: String { "\(path)/state.json" }
  private var lock: String { "\(path)/lock" }

  /// The ids that have a directory.
  package static func known() -> [UInt32] {
    directoryEntries(root).compactMap { UInt32($0) }.sorted()
  }

  /// The state file; nil if there is none that can be understood.
  package func read() -> DeviceState? {
    JSONParser.parse(smallFile(state)).flatMap(DeviceState.init)
  }

  /// Whether the daemon that made this directory is alive; takes nothing that another would miss.
  package var hasDaemon: Bool {
    let descriptor = unsafe qublk_open_file(lock, O_RDONLY, 0)
    guard descriptor >= 0 else { return false }
    defer { close(descriptor) }
    return qublk_flock(descriptor, 0) < 0 && errno == EWOULDBLOCK
  }

  /// Makes the directory this process's, clearing what a former owner left.
  ///
  /// A former daemon may be in its last steps with the same id, so a taken lock is waited for.
  ///
  /// - Parameters:
  ///   - seconds: How long a former owner is waited for.
  ///   - keepsState: Leaves the state file and the log, for a device that gets a new daemon.
  /// - Returns: The lock, to be kept open for the life of the process.
  /// - Throws: Why the directory cannot be taken.
  package func claim(
    within seconds: Double, keepsState: Bool = false
  ) throws(CommandError) -> Int32 {
    let deadline = Deadline(seconds: seconds)
    while true {
      try Self.make(Self.root)
      try Self.make(path)
      let descriptor = unsafe qublk_open_file(lock, O_RDWR, 1)
      let error = Errno(errno)
      // Its former owner may remove the directory at this very moment.
      guard descriptor >= 0 || error == .noEntry else { throw .state(lock, error) }
      if descriptor >= 0 {
        if qublk_flock(descriptor, 1) == 0, isStill(descriptor, at: lock) {
          if !keepsState { clear() }
          return descriptor
        }
        close(descriptor)
      }
      guard !deadline.hasPassed else { throw .stateTaken(path) }
      usleep(10_000)
    }
  }

  /// Writes the state file in one step: a reader sees the old file, the new one or none.
  package func write(_ value: DeviceState) throws(CommandError) {
    let draft = "\(path)/state.new"
    let descriptor = unsafe qublk_open_file(draft, O_WRONLY | O_TRUNC, 1)
    guard descriptor >= 0 else { throw .state(draft, Errno(errno)) }
    defer { close(descriptor) }
    guard writeAll(descriptor, value.json.text + "\n") else {
      throw .state(draft, Errno(errno))
    }
    guard unsafe rename(draft, state) == 0 else { throw .state(state, Errno(errno)) }
  }

  /// Takes away the socket of a daemon that has died, so that the next one can listen.
  func removeSocket() { unsafe unlink(controlSocket) }

  /// Changes what the state file says of recovery, if there is such a file.
  func update(_ change: (inout DeviceState.Recovery) -> Void) {
    guard var state = read(), var recovery = state.recovery else { return }
    change(&recovery)
    state.recovery = recovery
    // It tells people what goes on; nothing depends on it but the words of `list`.
    try? write(state)
  }

  /// Removes everything, the lock last: from then on the id can be claimed anew.
  ///
  /// - Parameter keepingLog: Leaves the log, for a stop that went wrong and told nobody.
  package func remove(keepingLog: Bool = false) {
    clear(keepingLog: keepingLog)
    unsafe unlink(lock)
    unsafe rmdir(path)
  }

  private func clear(keepingLog: Bool = false) {
    for file in [state, "\(path)/state.new", controlSocket] + (keepingLog ? [] : [log]) {
      unsafe unlink(file)
    }
  }

  static func make(_ path: String) throws(CommandError) {
    if unsafe mkdir(path, 0o700) < 0, errno != EEXIST { throw .state(path, Errno(errno)) }
  }

  /// Whether `path` still names the open file: its former owner may have removed it meanwhile.
  private func isStill(_ descriptor: Int32, at path: String) -> Bool {
    var opened = stat()
    var named = stat()
    return unsafe fstat(descriptor, &opened) == 0 && stat(path, &named) == 0
      && opened.st_ino == named.st_ino && opened.st_dev == named.st_dev
  }
}
