import ArgumentParser
import Bench
import BlockCore
import Daemon
import DiskImages
import DiskShell
import Glibc
import QCOW2Engine
import Reports

/// `qublk bench`: the engine under load, natively, without a device.
struct BenchCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "bench", abstract: "Run an I/O benchmark on an image, without a device.",
    discussion: """
      The short options, --flush-interval, --no-drain, --pattern and --image-opts are those of qemu-img \
      bench. The time counts from the first request to the last completion. I/O goes through io_uring \
      whatever -i and -n say.

      -w and --mix overwrite the data of the image. A block device that is mounted or has another use is \
      refused.
      """)

  @Option(name: .shortAndLong, help: "The number of requests. (default: 75000)") var count: Int?
  @Option(name: .shortAndLong, help: "The requests in flight, per queue.") var depth = 64
  @Option(name: .shortAndLong, help: "The image format: qcow2 or raw. (default: qcow2)")
  var format: String?
  @Option(name: .shortAndLong, help: "The first byte of the first request.")
  var offset = ByteSize(bytes: 0)
  @Option(name: [.customShort("s"), .long], help: "The bytes per request.")
  var bufferSize = ByteSize(bytes: 4096)
  @Option(
    name: [.customShort("S"), .long],
    help: "The bytes from one request to the next. (default: those per request)")
  var stepSize: ByteSize?
  @Option(
    name: [.customShort("t"), .long],
    help: "The cache mode: none, writeback, writethrough, directsync or unsafe.")
  var cache: String?
  @Flag(
    name: [.customShort("w"), .customLong("write")],
    help: "Write instead of reading: the data of the image is overwritten."
  ) var isWrite = false
  @Flag(name: [.customShort("q"), .customLong("quiet")], help: "Print nothing but errors.")
  var isQuiet = false
  @Flag(name: [.customShort("U"), .long], help: "Take no locks; not for writing.")
  var forceShare = false
  @Option(
    name: [.customShort("i"), .long], help: "threads, native or io_uring; for compatibility.")
  var aio: AsyncIO?
  @Flag(name: [.customShort("n"), .long], help: "Native AIO; for compatibility.")
  var native = false
  @Option(help: "The byte to fill writes with.") var pattern = 0
  @Option(help: "Flush whenever the number of requests left is a multiple of this.")
  var flushInterval = 0
  @Flag(help: "Do not wait for the writes in flight before a flush.") var noDrain = false
  @Flag(help: "The image is given as options: driver=qcow2,file.filename=….")
  var imageOpts = false
  @OptionGroup var objects: ObjectOption

  @Flag(help: "Requests go anywhere from the first byte on, by multiples of the step.")
  var random = false
  @Option(help: "What random choices depend on.") var seed: UInt64 = 1
  @Option(
    help: """
      Reads and writes: the percentage of reads, 70 or 70:30. The writes overwrite the data of the image.
      """)
  var mix: BenchMix?
  @Option(help: "The number of queues, each with a thread and a ring.") var queues = 1
  @Option(help: "Begin requests for so long, instead of so many.") var seconds: Double?
  @Flag(help: "Print a JSON object with everything that was counted.") var json = false
  @Flag(help: "Report locks, too, in a build with -Xswiftc -DLOCK_STATISTICS; needs --json.")
  var locks = false
  @OptionGroup var disk: DiskOptions
  @Argument(help: "The image.") var image: String

  /// The ways to do I/O that qemu-img bench lets one choose from.
  enum AsyncIO: String, ExpressibleByArgument, CaseIterable {
    case threads, native
    case ring = "io_uring"
  }

  func run() throws {
    let opening: DiskOpening
    var settings: DiskImageOptions
    do throws(IOFailure) {
      opening = try self.opening()
      settings = try diskOptions(opening)
      DamageNotes.collect(from: &settings)
    } catch {
      if let text = error.lines.errors { IOOutput.complain(text + "\n") }
      throw ExitCode(1)
    }
    let options = try benchOptions(opening.cache)
    let format = opening.format ?? .qcow2
    let disk = try format.openBlocking(settings)
    let result: BenchResult
    let report: BenchReport
    do {
      try options.fit(size: disk.target.size)
      if !isQuiet && !json { announce(options) }
      let before = BenchLocks.now()
      do throws(Errno) { result = try Bench.run(disk, options: options) } catch {
        throw CommandError.ring(error)
      }
      report = BenchReport(
        image: image, format: format.rawValue, cache: opening.cache.rawValue,
        options: options, result: result,
        locks: locks ? before.flatMap { BenchLocks.now()?.since($0) } : nil,
        statistics: (disk as? DiskImage)?.engine.statistics)
    } catch {
      try? disk.closeBlocking()
      throw error
    }
    try disk.closeBlocking()
    try tell(report)
    let failures = result.total[.failures]
    if failures > 0 {
      IOOutput.complain(
        "qublk: \(image): \(failures) of \(result.total.requests) requests failed\n")
      throw ExitCode(1)
    }
  }
}
