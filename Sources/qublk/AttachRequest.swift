import BlockCore
import Glibc
import QCOW2Engine

/// Everything that `add` asks of the daemon, with nothing left that depends on the caller's
/// directory or environment.
struct AttachRequest {
  /// The path as the user wrote it: the object of messages.
  let name: String
  /// The absolute path, symbolic links resolved.
  let path: String
  let id: UInt32?
  let queues: Int
  let depth: Int
  let isReadOnly: Bool
  let cacheBytes: Int?
  let blockSize: Int
  let zeroCopy: AddCommand.Switch
  let dirtyAge: Int
  let isDirect: Bool
  let printsJSON: Bool

  init(_ command: AddCommand) throws(CommandError) {
    guard let resolved = unsafe realpath(command.image, nil) else {
      throw .file(command.image, .open, Errno(errno))
    }
    defer { unsafe free(resolved) }
    name = command.image
    path = unsafe String(cString: resolved)
    id = command.id
    queues = command.queues ?? min(max(sysconf(Int32(_SC_NPROCESSORS_ONLN)), 1), 4)
    depth = command.depth
    isReadOnly = command.readOnly
    cacheBytes = command.cacheSize.map { Int(clamping: $0.bytes) }
    blockSize = command.blockSize
    zeroCopy = command.zeroCopy
    dirtyAge = command.dirtyAge
    isDirect = command.cache == .none
    printsJSON = command.json
  }

  var imageOptions: ImageOptions {
    var options = ImageOptions()
    options.readOnly = isReadOnly
    options.workers = queues
    options.slotsPerWorker = depth
    options.cacheBytes = cacheBytes
    options.dirtyAgeMilliseconds = dirtyAge
    return options
  }
}
