import Glibc
import JSON
import Reports

/// What a daemon leaves in its state file for `list`, `del` and, later, recovery.
///
/// The image is named by absolute path, device and inode, and the boot by its id, so that a file
/// that outlived its daemon is recognised for what it is [UBLK-27].
package struct DeviceState: Equatable {
  /// The version of the file's layout; others are not read.
  static let layout: Int64 = 1

  var id: UInt32
  /// The absolute path of the image.
  package var image: String
  /// `st_dev` and `st_ino` of the image.
  var imageDevice: UInt64
  var imageInode: UInt64
  /// The daemon.
  package var process: Int32
  /// /proc/sys/kernel/random/boot_id.
  var boot: String
  /// The daemon's version of qublk.
  package var version: String
  var queues: Int
  var depth: Int
  /// The size of the device in bytes.
  var size: UInt64
  /// Nothing is written to the image.
  package var isReadOnly: Bool
  /// Seconds since 1970.
  package var started: Int64
  /// The version of the control protocol that the daemon speaks; nil for one from before there was one.
  package var controlVersion: Int64? = ControlRequest.version
  /// How the device fares.
  package var condition = DeviceCondition.good
  /// What is wrong, in words; nil if nothing is.
  package var trouble: String?
  /// What is in force of the daemon's sandbox; nil for a daemon from before there was one.
  package var sandbox: [String]? = []
  /// The parent that watches the daemon; nil if there is none.
  package var supervisor: Int32?
  /// How the device comes back when its daemon dies; nil if it does not outlive its daemon.
  package var recovery: Recovery?
}

extension DeviceState {
  /// The state of a device that this process begins to serve, with what the request says of it.
  package init(of request: AttachRequest, _ device: DeviceName, supervisor: Int32?) {
    self.init(
      id: device.id, image: request.path, imageDevice: 0, imageInode: 0, process: getpid(),
      boot: Boot.id, version: request.version, queues: request.queues, depth: request.depth,
      size: request.nullSize, isReadOnly: request.isReadOnly, started: Int64(time(nil)))
    self.supervisor = supervisor
    recovery = Recovery(phase: .serving, request: request.stored)
  }

  var json: JSONValue {
    .object([
      .init("layout", .integer(Self.layout)),
      .init("id", .integer(Int64(id))),
      .init("image", .string(image)),
      .init("image-device", .string(String(imageDevice))),
      .init("image-inode", .string(String(imageInode))),
      .init("pid", .integer(Int64(process))),
      .init("boot-id", .string(boot)),
      .init("version", .string(version)),
      .init("control-version", controlVersion.map(JSONValue.integer) ?? .null),
      .init("queues", .integer(Int64(queues))),
      .init("depth", .integer(Int64(depth))),
      .init("size", .string(String(size))),
      .init("read-only", .bool(isReadOnly)),
      .init("started", .integer(started)),
      .init("condition", .string(condition.rawValue)),
      .init("trouble", trouble.map { .string($0) } ?? .null),
      .init("sandbox", sandbox.map { .array($0.map(JSONValue.string)) } ?? .null),
      .init("supervisor", supervisor.map { .integer(Int64($0)) } ?? .null),
      .init("recovery", recovery?.json ?? .null),
    ])
  }

  /// Reads what ``json`` wrote; nil if anything is missing or of another layout.
  init?(_ json: JSONValue) {
    guard json["layout"]?.integer == Self.layout,
      let id = json["id"]?.integer.flatMap(UInt32.init(exactly:)),
      let image = json["image"]?.string,
      let imageDevice = json["image-device"]?.string.flatMap({ UInt64($0) }),
      let imageInode = json["image-inode"]?.string.flatMap({ UInt64($0) }),
      let process = json["pid"]?.integer.flatMap(Int32.init(exactly:)),
      let boot = json["boot-id"]?.string,
      let version = json["version"]?.string,
      let queues = json["queues"]?.integer,
      let depth = json["depth"]?.integer,
      let size = json["size"]?.string.flatMap({ UInt64($0) }),
      let isReadOnly = json["read-only"]?.bool,
      let started = json["started"]?.integer
    else { return nil }
    self.init(
      id: id, image: image, imageDevice: imageDevice, imageInode: imageInode, process: process,
      boot: boot, version: version, queues: Int(queues), depth: Int(depth), size: size,
      isReadOnly: isReadOnly, started: started)
    controlVersion = json["control-version"]?.integer
    condition = json["condition"]?.string.flatMap(DeviceCondition.init) ?? .good
    trouble = json["trouble"]?.string
    sandbox = json["sandbox"]?.array?.compactMap(\.string)
    supervisor = json["supervisor"]?.integer.flatMap(Int32.init(exactly:))
    recovery = json["recovery"].flatMap(Recovery.init)
  }
}
