import BlockCore
import Glibc
import HostFiles
import Synchronization
import Ublk
import Uring

/// Serves a file as a ublk device while a shell command runs, then stops and deletes the device.
///
///     ublkprobe [queues=N] [depth=N] [zero-copy=auto|on|off] [size=MIB] [file=PATH] [slow=N]
///               [cycles=N] [data=memory|registered] [buffers=N] [wait] -- COMMAND
///     ublkprobe stop=ID
///
/// COMMAND finds the device's path in $DEV. Exits with its status; with `cycles`, makes and deletes
/// the device that often and runs COMMAND in each. With `wait`, serves on until someone else stops
/// the device, as `stop` does.
@main
struct Probe {
  static func main() {
    let arguments = Arguments(CommandLine.arguments)
    do {
      if let id = arguments.stop { return try ControlDevice().stop(id) }
      for cycle in 1...arguments.cycles {
        let status = try run(arguments, cycle)
        if status != 0 { exit(status) }
      }
    } catch {
      say("ublkprobe: \(error)")
      exit(1)
    }
  }

  private static func run(_ arguments: Arguments, _ cycle: Int) throws -> Int32 {
    let size = UInt64(arguments.sizeMiB) << 20
    close(open(arguments.file, O_RDWR | O_CREAT | O_CLOEXEC, 0o600))
    truncate(arguments.file, 0)
    truncate(arguments.file, off_t(arguments.shortFile ? 4096 : size))
    let file = try RingHostFile.open(arguments.file, readOnly: false)
    let target = FileTarget(file: file, size: size, slowEvery: arguments.slow)
    var parameters = DeviceParameters(size: size, clusterSize: FileTarget.clusterSize)
    parameters.dmaAlignment = UInt32(max(file.memoryAlignment, 512))
    var options = DeviceOptions(parameters: parameters, fileDescriptors: [file.descriptor])
    options.queues = arguments.queues
    options.depth = arguments.depth
    options.zeroCopy = arguments.zeroCopy
    options.registeredBuffers = arguments.buffers
    options.slowPathData = arguments.registered ? .registered : .memory
    let ticks = Ticks()
    options.maintenance = {
      guard let loop = WorkerLoop.current else { return }
      while await loop.sleep(milliseconds: 100) { ticks.count.add(1, ordering: .relaxed) }
      ticks.ended.store(true, ordering: .relaxed)
    }
    let device = try UblkDevice.create(target, options)
    if cycle == 1 {
      say(
        "probe: \(device.blockDevicePath) zero-copy=\(device.usesZeroCopy)",
        "direct=\(file.isDirect) features=\(String(device.info.features.rawValue, radix: 16))",
        "warnings=\(device.warnings)")
    }
    setenv("DEV", device.blockDevicePath, 1)
    let status = arguments.command.isEmpty ? 0 : system(arguments.command)
    if arguments.waits {
      var ended = pollfd(fd: device.endedDescriptor, events: Int16(POLLIN), revents: 0)
      while poll(&ended, 1, -1) < 0 {}
      say("probe: all workers have ended")
    }
    let counters = device.statistics
    try device.stop()
    if cycle == arguments.cycles { report(counters, target, ticks) }
    if access("/dev/ublkb\(device.id)", F_OK) == 0 || access("/dev/ublkc\(device.id)", F_OK) == 0 {
      say("probe: device nodes are left")
      return 1
    }
    return status == 0 ? 0 : 1
  }

  private static func report(_ counters: [QueueCounters], _ target: FileTarget, _ ticks: Ticks) {
    for (queue, counter) in counters.enumerated() {
      say(
        "probe: queue \(queue) reads \(counter.latency(.read).count)",
        "writes \(counter.latency(.write).count) flushes \(counter.latency(.flush).count)",
        "discards \(counter.latency(.discard).count)",
        "zeroes \(counter.latency(.writeZeroes).count) slow \(slowRequests(counter))",
        "unregistered \(counter.unregisteredRequests.current) failures \(counter.failures.current)")
    }
    say(
      "probe: unfinished plans \(target.unfinished), ticks",
      "\(ticks.count.load(ordering: .relaxed)), ended \(ticks.ended.load(ordering: .relaxed))")
  }
}

private func slowRequests(_ counters: QueueCounters) -> UInt64 {
  let operations: [BlockOperation] = [.read, .write, .flush, .discard, .writeZeroes]
  return operations.map(counters.slowRequests).reduce(0, +)
}

/// What the maintenance task leaves behind.
final class Ticks: Sendable {
  let count = Atomic<Int>(0)
  let ended = Atomic<Bool>(false)
}

/// The command line.
struct Arguments {
  var queues = 1
  var depth = 64
  var zeroCopy = ZeroCopyChoice.automatic
  var sizeMiB = 256
  var file = "/dev/shm/ublkprobe.img"
  var slow = 0
  var cycles = 1
  var registered = false
  var shortFile = false
  var buffers: Int?
  var waits = false
  var stop: UInt32?
  var command = ""

  init(_ words: [String]) {
    var rest = words.dropFirst()
    while let word = rest.popFirst() {
      if word == "--" {
        command = rest.joined(separator: " ")
        return
      }
      let parts = word.split(separator: "=", maxSplits: 1).map(String.init)
      set(parts[0], parts.count > 1 ? parts[1] : "")
    }
  }

  private mutating func set(_ name: String, _ value: String) {
    switch name {
    case "queues": queues = Int(value) ?? 1
    case "depth": depth = Int(value) ?? 64
    case "zero-copy": zeroCopy = value == "on" ? .required : value == "off" ? .off : .automatic
    case "size": sizeMiB = Int(value) ?? 256
    case "file": file = value
    case "slow": slow = Int(value) ?? 0
    case "cycles": cycles = Int(value) ?? 1
    case "data": registered = value == "registered"
    case "short-file": shortFile = true
    case "buffers": buffers = Int(value)
    case "wait": waits = true
    case "stop": stop = UInt32(value)
    default:
      say("ublkprobe: unknown argument \(name)")
      exit(64)
    }
  }
}

/// Prints a line and flushes, so that it keeps its place among the command's output.
func say(_ parts: String...) {
  print(parts.joined(separator: " "))
  fflush(nil)
}
