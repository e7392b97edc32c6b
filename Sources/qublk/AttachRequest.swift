import BlockCore
import DiskImages
import Glibc
import HostFiles
import QCOW2Engine

/// Everything that `add` asks of the daemon, with nothing left that depends on the caller's
/// directory or environment.
struct AttachRequest {
  /// The absolute path, symbolic links resolved: what the image is known by.
  let path: String
  let format: DiskFormat
  /// The size of a null disk in bytes.
  let nullSize: UInt64
  /// How the image is opened: by its absolute path as it was given, since what it refers to counts
  /// from there; data files from the caller's directory.
  var disk: DiskImageOptions
  let id: UInt32?
  let queues: Int
  let depth: Int
  let isReadOnly: Bool
  let blockSize: Int
  var zeroCopy: AddCommand.Switch
  /// The requests of each queue that the slow path serves at once; nil for all.
  var servingLimit: Int?
  /// The slots of each queue's table of registered buffers; nil for one per tag.
  let zeroCopySlots: Int?
  let batches: Bool
  /// The most nanoseconds for which a queue's thread looks for work before it sleeps.
  let pollLimit: UInt64
  /// The I/O scheduler to set; nil leaves the kernel's.
  let scheduler: String?
  let dirtyAge: Int
  let printsJSON: Bool
  let noSpace: NoSpacePolicy

  init(_ command: AddCommand) throws {
    format = command.format
    nullSize = command.size?.bytes ?? 0
    let image = command.image ?? ""
    path = try format == .null ? "null" : Self.resolved(image)
    id = command.id
    queues = command.queues ?? min(max(sysconf(Int32(_SC_NPROCESSORS_ONLN)), 1), 4)
    depth = command.depth
    isReadOnly = command.readOnly || command.snapshot != nil
    blockSize = command.blockSize
    zeroCopy = command.zeroCopy
    zeroCopySlots = command.zeroCopySlots
    batches = command.batch == .on
    pollLimit = UInt64(command.pollMaxUs) * 1000
    scheduler = command.scheduler == "keep" ? nil : command.scheduler
    dirtyAge = command.dirtyAge
    printsJSON = command.json
    noSpace = command.onNoSpace
    var disk = DiskImageOptions(path: image, readOnly: isReadOnly)
    disk.engine.snapshot = command.snapshot.map { .idOrName($0) }
    disk.engine.workers = queues
    disk.engine.slotsPerWorker = depth
    disk.engine.dirtyAgeMilliseconds = dirtyAge
    disk.engine.copyOnRead = command.copyOnRead && !isReadOnly
    disk.engine.compressesWrites = command.compress && !isReadOnly
    disk.mode = command.cache == .none ? .direct : .buffered
    // The metadata of qcow2 is written by sectors of 512 bytes, whatever the guest's are.
    disk.granularity = format == .raw ? blockSize : 512
    try command.disk.apply(to: &disk)
    self.disk = disk
  }

  private static func resolved(_ image: String) throws(CommandError) -> String {
    guard let resolved = unsafe realpath(image, nil) else {
      throw .file(image, .open, Errno(errno))
    }
    defer { unsafe free(resolved) }
    return unsafe String(cString: resolved)
  }
}
