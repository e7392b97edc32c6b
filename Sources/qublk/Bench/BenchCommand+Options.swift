import ArgumentParser
import Bench
import BlockCore
import DiskImages
import DiskShell
import QCOW2Engine

extension BenchCommand {
  static let queueLimit = 64
  static let depthLimit = 4096
  static let sizeLimit: UInt64 = 1 << 30
  static let defaultCount = 75000

  func validate() throws {
    try check("-d", depth, in: 1...Self.depthLimit)
    try check("--queues", queues, in: 1...Self.queueLimit)
    try check("--pattern", pattern, in: 0...255)
    try check("--flush-interval", flushInterval, in: 0...Int.max)
    if let count { try check("-c", count, in: 0...Int.max) }
    if let seconds {
      if count != nil { throw ValidationError("-c and --seconds exclude each other") }
      guard seconds > 0, seconds <= 1e6 else {
        throw ValidationError("--seconds is \(seconds), expected more than 0 and at most 1000000")
      }
    }
    try check("-s", bufferSize, from: 512)
    if let stepSize { try check("-S", stepSize, from: 0) }
    if offset.bytes % 512 != 0 || offset.bytes > UInt64(Int64.max) {
      throw ValidationError("-o is \(offset.bytes), expected a multiple of 512 below 8E")
    }
    if locks && BenchLocks.now() == nil {
      throw ValidationError(
        "--locks: this build counts no locks: it needs -Xswiftc -DLOCK_STATISTICS")
    }
    if locks && !json { throw ValidationError("--locks needs --json") }
    if isWrite && mix != nil { throw ValidationError("-w and --mix exclude each other") }
    if flushInterval > 0 {
      if !writes { throw ValidationError("--flush-interval is only available in write tests") }
      if flushInterval < depth {
        throw ValidationError("Flush interval can't be smaller than depth")
      }
    }
    // Reads and writes have a buffer each.
    let kinds: UInt64 = writes && mix?.readPercent ?? 0 > 0 ? 2 : 1
    if bufferSize.bytes * UInt64(depth * queues) * kinds > UInt64(BenchOptions.memoryLimit) {
      throw ValidationError(
        "-s \(bufferSize.bytes) times -d \(depth) times --queues \(queues)"
          + (kinds == 2 ? ", for reads and for writes" : "") + ": more than 4 GiB of memory")
    }
  }

  private func check(_ name: String, _ value: Int, in allowed: ClosedRange<Int>) throws {
    if allowed.contains(value) { return }
    let end = allowed.upperBound == Int.max ? " at least" : " to \(allowed.upperBound)"
    throw ValidationError("\(name) is \(value), expected \(allowed.lowerBound)\(end)")
  }

  private func check(_ name: String, _ value: ByteSize, from least: UInt64) throws {
    if value.bytes % 512 == 0, value.bytes >= least, value.bytes <= Self.sizeLimit { return }
    throw ValidationError(
      "\(name) is \(value.bytes), expected a multiple of 512 from \(least) to \(Self.sizeLimit)")
  }

  private var writes: Bool { isWrite || mix.map { $0.readPercent < 100 } ?? false }

  /// What to open.
  func opening() throws(IOFailure) -> DiskOpening {
    try IOFailure.opening { () throws(OpeningError) in try diskOpening() }
  }

  private func diskOpening() throws(OpeningError) -> DiskOpening {
    var opening = DiskOpening()
    if let cache { try opening.setCache(cache) }
    opening.isReadOnly = !writes
    opening.sharesByForce = forceShare
    if imageOpts {
      if format != nil { throw OpeningError("--image-opts and -f are mutually exclusive") }
      try opening.apply(list: image)
      if opening.path == nil { throw OpeningError("--image-opts: \"file.filename\" is missing") }
    } else {
      if let format { try opening.setFormat(format) }
      try opening.setName(image)
    }
    if (native || aio == .native) && !opening.cache.isDirect {
      throw OpeningError("native AIO needs -t none or -t directsync")
    }
    return opening
  }

  /// How to open it.
  func diskOptions(_ opening: DiskOpening) throws(IOFailure) -> DiskImageOptions {
    var opening = opening
    do { try disk.apply(to: &opening.disk) } catch {
      throw .openOption(OpeningError("\(error)"))
    }
    let secrets: [ObjectSecret]
    do throws(OptionTextError) { secrets = try objects.secrets() } catch {
      throw .optionText(error)
    }
    opening.workers = queues
    opening.slots = depth
    return try IOFailure.opening { [opening] () throws(OpeningError) in
      try opening.diskOptions(secrets)
    }
  }

  /// The load.
  func benchOptions(_ cache: CacheMode) throws -> BenchOptions {
    var options = BenchOptions()
    options.count = seconds == nil ? count ?? Self.defaultCount : nil
    options.seconds = seconds
    options.depth = depth
    options.bufferSize = Int(bufferSize.bytes)
    let step = stepSize.map { Int($0.bytes) } ?? 0
    options.stepSize = step == 0 ? options.bufferSize : step
    options.offset = offset.bytes
    options.readPercent = mix?.readPercent ?? (isWrite ? 0 : 100)
    options.isRandom = random
    options.seed = seed
    options.writesThrough = cache.writesThrough
    // What is unsafe is a disk without flushes.
    options.flushInterval = cache == .unsafe ? 0 : flushInterval
    options.drainsForFlush = !noDrain
    options.pattern = UInt8(pattern)
    options.queues = queues
    return options
  }
}

extension BenchOptions {
  /// Makes sure that a request fits in a disk of `size` bytes.
  func fit(size: UInt64) throws {
    let room = size > offset ? size - offset : 0
    if room < UInt64(bufferSize) {
      throw ValidationError(
        "-s is \(bufferSize), expected at most \(room): the disk has \(size) bytes, and -o is \(offset)"
      )
    }
  }
}

extension BenchMix: ExpressibleByArgument {
  package init?(argument: String) { self.init(argument) }
}
