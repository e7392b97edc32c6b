import ArgumentParser
import BlockCore
import Daemon
import DiskImages
import Glibc
import HostFiles

/// `qublk add`: attaches an image and leaves a daemon that serves it.
struct AddCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "add", abstract: "Attach an image as a block device.",
    discussion: """
      Prints the path of the device, for dev=$(qublk add IMAGE), once it can be used. A daemon \
      serves it until "qublk del", or until it gets SIGTERM while nobody uses the device.
      """)

  @Argument(
    help: "The image: a file or a block device; left out for --format null.", completion: .file())
  var image: String?

  @Option(
    name: [.customShort("f"), .long],
    help: """
      What the image is: qcow2, raw (the file as it is), or null (no storage, to measure the driver: \
      writes are dropped, and reads return undefined data).
      """)
  var format = DiskFormat.qcow2

  @Option(help: "The size of a null disk, with suffix K, M, G or T.")
  var size: ByteSize?

  @Flag(help: "Stay in the foreground, with messages on standard error.")
  var foreground = false

  @Option(
    name: [.customShort("n"), .long],
    help: "The number of the device; the first free one by default.")
  var id: UInt32?

  @Option(
    name: .shortAndLong,
    help: "Queues, each with a thread. (default: the number of processors, at most 4)")
  var queues: Int?

  @Option(name: .shortAndLong, help: "Requests in flight per queue.")
  var depth = 128

  @Flag(
    name: .shortAndLong, help: "Never write, neither to the device nor to the image.")
  var readOnly = false

  @Option(help: "The logical block size: 512 or 4096.")
  var blockSize = 512

  @Option(help: "Let the kernel move the data: auto, on or off.")
  var zeroCopy = AttachRequest.Switch.auto

  @Option(
    help: """
      A queue's buffers in the kernel's table, for zero copy. Requests that have no buffer there are \
      copied. (default: the depth)
      """)
  var zeroCopySlots: Int?

  @Option(help: "Move many requests with one command, where the kernel can: on or off.")
  var batch = OnOff.off

  @Option(
    help: """
      The most microseconds that a queue's thread looks for work before it sleeps. This costs processor \
      time and can lower latency; with 0 it sleeps at once.
      """)
  var pollMaxUs = 0

  @Option(
    help: """
      The I/O scheduler of the device, one of those in /sys/block/ublkbN/queue/scheduler; keep leaves \
      the kernel's choice.
      """)
  var scheduler = "none"

  @Option(help: "Milliseconds until metadata without a flush is written back.")
  var dirtyAge = 1000

  @Option(help: "The host's page cache: none (direct I/O, where possible) or writeback.")
  var cache = HostCache.none

  @Option(help: "Attach this internal snapshot, by ID or name, read-only and at its own size.")
  var snapshot: String?

  @OptionGroup var disk: DiskOptions

  @Flag(help: "Keep in the image what is read from its backing file.")
  var copyOnRead = false

  @Flag(help: "Compress clusters that are written whole.")
  var compress = false

  @Option(
    name: .customLong("on-enospc"),
    help: """
      When the host has no space for a request: fail it, or hold it until there is space, for at most \
      so many seconds. (fail, hold, hold:SECONDS)
      """)
  var onNoSpace = NoSpacePolicy.fail

  @Flag(
    help: """
      Leave clusters leaked that a daemon which died, or a power cut, has left reserved. Without this they \
      are given back in the background.
      """)
  var noRepair = false

  @Option(
    help: """
      Keep the device, and all requests, when the daemon dies: its supervisor starts another, and \
      applications see a pause. on needs Linux 6.16 and --format raw or null: what a qcow2 image has in \
      memory would be lost. (on, off; default: on where that can be)
      """)
  var recovery: OnOff?

  @Option(
    help: """
      Have the daemon give up what serving does not need: capabilities, the network, other files, other \
      system calls. With off it keeps all rights of root. (on, off)
      """)
  var sandbox = OnOff.on

  @Flag(help: "Print a JSON object instead of the path.")
  var json = false

  enum OnOff: String, ExpressibleByArgument, CaseIterable {
    case on, off
  }

  /// What lies between the daemon and the image.
  enum HostCache: String, ExpressibleByArgument, CaseIterable {
    case none, writeback
  }

  static let queueLimit = 64
  /// In microseconds: a thread that looks is at the disposal of nothing else.
  static let pollLimit = 1000
  /// Those of Linux for devices with many queues.
  static let schedulers = ["none", "mq-deadline", "kyber", "bfq"]
  /// `UBLK_MAX_QUEUE_DEPTH`.
  static let depthLimit = 4096

  func validate() throws {
    try checkImage()
    if let id, id >= DeviceName.idLimit {
      throw ValidationError("--id is \(id), expected 0 to \(DeviceName.idLimit - 1)")
    }
    if let queues { try check("--queues", queues, in: 1...Self.queueLimit) }
    try check("--depth", depth, in: 1...Self.depthLimit)
    if let zeroCopySlots { try check("--zero-copy-slots", zeroCopySlots, in: 1...Self.depthLimit) }
    try check("--poll-max-us", pollMaxUs, in: 0...Self.pollLimit)
    try check("--dirty-age", dirtyAge, in: 1...3_600_000)
    if !Self.schedulers.contains(scheduler) {
      throw ValidationError(
        "--scheduler is \"\(scheduler)\", expected \(Self.schedulers.joined(separator: ", "))")
    }
    for (name, isGiven) in [("--compress", compress), ("--copy-on-read", copyOnRead)] {
      if isGiven && readOnly { throw ValidationError("\(name) and --read-only exclude each other") }
    }
    if recovery == .on, !format.isRecoverable {
      throw ValidationError(
        "--recovery on needs --format raw or null: a qcow2 image has metadata in memory that would be "
          + "lost with the daemon")
    }
    if blockSize != 512, blockSize != 4096 {
      throw ValidationError("--block-size is \(blockSize), expected 512 or 4096")
    }
  }

  private func checkImage() throws {
    guard format == .null else {
      if image == nil { throw ValidationError("Missing expected argument '<image>'") }
      if image == "" { throw ValidationError("the image's path is empty") }
      if size != nil { throw ValidationError("--size is for --format null only") }
      if format == .raw { try checkForQCOW2() }
      return
    }
    if image != nil { throw ValidationError("--format null takes no image") }
    try checkForQCOW2()
    guard let bytes = size?.bytes, bytes > 0, bytes % UInt64(blockSize) == 0, bytes <= 1 << 62
    else {
      throw ValidationError(
        "--size is \(size.map { String($0.bytes) } ?? "missing"), expected a multiple of "
          + "\(blockSize) up to \(UInt64(1) << 62)")
    }
  }

  /// What only an image of the format has; a device without what was asked for would be a surprise.
  private func checkForQCOW2() throws {
    let given = [
      ("--snapshot", snapshot != nil), ("--copy-on-read", copyOnRead), ("--compress", compress),
      ("--backing-format", !disk.backingFormat.isEmpty),
      ("--backing-policy", !disk.backingPolicy.isEmpty), ("--data-file", disk.dataFile != nil),
      ("--cache-size", disk.cacheSize != nil),
      ("a passphrase", !disk.secrets.sources.isEmpty),
    ]
    for (name, isGiven) in given where isGiven {
      throw ValidationError("\(name) needs --format qcow2")
    }
  }

  private func check(_ name: String, _ value: Int, in allowed: ClosedRange<Int>) throws {
    if !allowed.contains(value) {
      throw ValidationError(
        "\(name) is \(value), expected \(allowed.lowerBound) to \(allowed.upperBound)")
    }
  }

  func run() throws {
    let request = try AttachRequest(self)
    guard !foreground else {
      // Whoever started it may start it again when it has died.
      let again = try Recovery.start(instead: request)
      try DeviceServer.run(again ?? ServerStart(request), ReadySignal())
      return
    }
    try Self.launch(ServerStart(request))
  }

  /// Leaves a supervisor and its daemon behind, and prints what the daemon says when it serves.
  static func launch(_ start: ServerStart) throws(CommandError) {
    try Launch.detached { ready throws(CommandError) in
      try Supervisor.run(start, ready)
    } output: { text throws(CommandError) in
      guard writeAll(STDOUT_FILENO, text + "\n") else { throw .untold(Errno(errno)) }
    }
  }
}

extension DiskFormat: ExpressibleByArgument {}

extension AttachRequest.Switch: ExpressibleByArgument {}
