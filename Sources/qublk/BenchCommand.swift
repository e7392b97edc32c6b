import ArgumentParser
import DiskImages
import Glibc
import HostFiles
import QCOW2Engine

/// `qublk bench`: the engine under load, natively, without a device.
struct BenchCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "bench",
    abstract: "Run a simple sequential I/O benchmark on an image, without a device.",
    discussion: "Options and their meaning are those of qemu-img bench.")

  @Option(name: .short, help: "The number of requests.") var count = 75000
  @Option(name: .short, help: "The requests in flight, per queue.") var depth = 64
  @Option(name: .short, help: "The image format: qcow2 or raw.") var format = DiskFormat.qcow2
  @Option(name: .short, help: "The first byte of the first request.") var offset = "0"
  @Option(name: .customShort("s"), help: "The bytes per request.") var bufferSize = "4096"
  @Option(name: .customShort("S"), help: "The bytes from one request to the next.")
  var stepSize: String?
  @Option(name: .customShort("t"), help: "The cache mode: none (O_DIRECT) or writeback.")
  var cache = "writeback"
  @Flag(name: .customShort("w"), help: "Write instead of reading.") var isWrite = false
  @Flag(name: .customShort("q"), help: "Print nothing but errors.") var isQuiet = false
  @Option(help: "The byte to fill writes with.") var pattern: UInt8 = 0
  @Option(help: "Flush after this many writes.") var flushInterval = 0
  @Option(help: "The number of worker threads.") var queues = 1
  @OptionGroup var disk: DiskOptions
  @Argument(help: "The image.") var image: String

  func run() throws {
    let options = try benchOptions()
    let image = try format.openBlocking(diskOptions())
    if !isQuiet { announce(options) }
    let result = try Bench.run(image, options: options)
    try image.closeBlocking()
    if !isQuiet {
      let seconds = String(Int(result.seconds * 1000))
      let padded = String(repeating: "0", count: max(0, 4 - seconds.count)) + seconds
      print("Run completed in \(padded.dropLast(3)).\(padded.suffix(3)) seconds.")
    }
    if result.failures > 0 {
      print("qublk: \(self.image): \(result.failures) of \(result.requests) requests failed")
      throw ExitCode(1)
    }
  }

  private func announce(_ options: BenchOptions) {
    print(
      "Sending \(options.count) \(isWrite ? "write" : "read") requests, \(options.bufferSize) "
        + "bytes each, \(depth) in parallel (starting at offset \(options.offset), "
        + "step size \(options.stepSize))")
    if flushInterval > 0 { print("Sending flush every \(flushInterval) requests") }
    fflush(nil)
  }

  private func diskOptions() throws -> DiskImageOptions {
    guard format != .null else { throw ValidationError("-f is null, expected qcow2 or raw") }
    var options = DiskImageOptions(path: image, readOnly: !isWrite)
    options.engine.workers = queues
    options.engine.slotsPerWorker = depth
    options.mode = cache == "none" ? .direct : .buffered
    try disk.apply(to: &options)
    return options
  }

  private func benchOptions() throws -> BenchOptions {
    let buffer = try size(bufferSize, "-s")
    let step = try stepSize.map { try size($0, "-S") } ?? buffer
    let first = try size(offset, "-o")
    guard buffer > 0, buffer % 512 == 0, step % 512 == 0, first % 512 == 0, buffer <= 1 << 30 else {
      throw ValidationError("-s, -S and -o must be multiples of 512, and -s above 0")
    }
    guard count > 0, depth > 0, depth <= 4096, queues > 0, queues <= 64 else {
      throw ValidationError("-c, -d (at most 4096) and --queues (at most 64) must be above 0")
    }
    return BenchOptions(
      count: count, depth: depth, bufferSize: buffer, stepSize: step, offset: UInt64(first),
      isWrite: isWrite, flushInterval: isWrite ? flushInterval : 0, pattern: pattern,
      queues: queues)
  }

  private func size(_ text: String, _ option: String) throws -> Int {
    let units: [Character: Int] = ["k": 10, "K": 10, "M": 20, "G": 30, "T": 40, "b": 0]
    var digits = text[...]
    var shift = 0
    if let last = digits.last, let bits = units[last] {
      digits = digits.dropLast()
      shift = bits
    }
    guard let number = Int(digits), number >= 0, number <= Int.max >> (shift + 1) else {
      throw ValidationError("\(option) \(text): not a size")
    }
    return number << shift
  }
}
