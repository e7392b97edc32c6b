import BlockCore
import Daemon
import DiskImages
import Glibc
import HostFiles
import QCOW2Engine

extension AttachRequest {
  /// What the command line asks for.
  init(_ command: AddCommand) throws {
    let image = command.image ?? ""
    let path = try command.format == .null ? "null" : Self.resolved(image)
    let queues = command.queues ?? min(max(sysconf(Int32(_SC_NPROCESSORS_ONLN)), 1), 4)
    let isReadOnly = command.readOnly || command.snapshot != nil
    var disk = DiskImageOptions(path: image, readOnly: isReadOnly)
    disk.engine.snapshot = command.snapshot.map { .idOrName($0) }
    disk.engine.workers = queues
    disk.engine.slotsPerWorker = command.depth
    disk.engine.dirtyAgeMilliseconds = command.dirtyAge
    disk.engine.copyOnRead = command.copyOnRead && !isReadOnly
    disk.engine.compressesWrites = command.compress && !isReadOnly
    disk.mode = command.cache == .none ? .direct : .buffered
    // The metadata of qcow2 is written by sectors of 512 bytes, whatever the guest's are.
    disk.granularity = command.format == .raw ? command.blockSize : 512
    try command.disk.apply(to: &disk)
    self.init(
      path: path, format: command.format, nullSize: command.size?.bytes ?? 0, disk: disk,
      id: command.id, queues: queues, depth: command.depth, isReadOnly: isReadOnly,
      blockSize: command.blockSize, zeroCopy: command.zeroCopy,
      zeroCopySlots: command.zeroCopySlots, batches: command.batch == .on,
      pollLimit: UInt64(command.pollMaxUs) * 1000,
      scheduler: command.scheduler == "keep" ? nil : command.scheduler,
      dirtyAge: command.dirtyAge, printsJSON: command.json, noSpace: command.onNoSpace,
      returnsLeaks: !command.noRepair, hasSandbox: command.sandbox == .on, version: Qublk.version)
    recovery =
      switch command.recovery {
      case .on: .on
      case .off: .off
      case nil: .auto
      }
  }

  private static func resolved(_ image: String) throws(CommandError) -> String {
    guard let resolved = unsafe realpath(image, nil) else {
      throw .file(image, .open, Errno(errno))
    }
    defer { unsafe free(resolved) }
    return unsafe String(cString: resolved)
  }
}
