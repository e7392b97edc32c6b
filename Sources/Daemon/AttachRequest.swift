package import DiskImages

/// Everything that `add` asks of the daemon, with nothing left that depends on the caller's
/// directory or environment.
package struct AttachRequest {
  /// The absolute path, symbolic links resolved: what the image is known by.
  let path: String
  package let format: DiskFormat
  /// The size of a null disk in bytes.
  let nullSize: UInt64
  /// How the image is opened: by its absolute path as it was given, since what it refers to counts
  /// from there; data files from the caller's directory.
  package var disk: DiskImageOptions
  let id: UInt32?
  let queues: Int
  let depth: Int
  let isReadOnly: Bool
  let blockSize: Int
  var zeroCopy: Switch
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
  /// Leaks of an image that was in use when its daemon or the machine died are returned.
  let returnsLeaks: Bool
  /// The daemon gives up what serving does not need.
  var hasSandbox: Bool
  /// The program's version, for the state file.
  let version: String
  /// Whether the device outlives its daemon; `auto`: where the kernel, and the format, can.
  package var recovery = Switch.auto

  /// Everything but ``servingLimit``, which the daemon finds out.
  package init(
    path: String, format: DiskFormat, nullSize: UInt64, disk: DiskImageOptions, id: UInt32?,
    queues: Int, depth: Int, isReadOnly: Bool, blockSize: Int, zeroCopy: Switch,
    zeroCopySlots: Int?, batches: Bool, pollLimit: UInt64, scheduler: String?, dirtyAge: Int,
    printsJSON: Bool, noSpace: NoSpacePolicy, returnsLeaks: Bool = true, hasSandbox: Bool = true,
    version: String
  ) {
    self.path = path
    self.format = format
    self.nullSize = nullSize
    self.disk = disk
    self.id = id
    self.queues = queues
    self.depth = depth
    self.isReadOnly = isReadOnly
    self.blockSize = blockSize
    self.zeroCopy = zeroCopy
    self.zeroCopySlots = zeroCopySlots
    self.batches = batches
    self.pollLimit = pollLimit
    self.scheduler = scheduler
    self.dirtyAge = dirtyAge
    self.printsJSON = printsJSON
    self.noSpace = noSpace
    self.returnsLeaks = returnsLeaks
    self.hasSandbox = hasSandbox
    self.version = version
  }

  /// A choice that may be left to qublk.
  package enum Switch: String, CaseIterable {
    case auto, on, off
  }
}

extension DiskFormat {
  /// Whether a device of this format can outlive its daemon without losing a write that was acknowledged.
  ///
  /// What a qcow2 image has in memory ahead of its file dies with the daemon.
  package var isRecoverable: Bool { self != .qcow2 }
}
