import BlockCore
import TestTools

/// Makes the images of a combination with QEMU's tools: the chain from the bottom up, each with
/// contents of its own.
struct MatrixBuilder {
  let chosen: MatrixCase
  let scratch: Scratch
  let diskSize: UInt64
  private var random: SeededGenerator

  init(_ chosen: MatrixCase, _ scratch: Scratch, _ random: SeededGenerator) {
    self.chosen = chosen
    self.scratch = scratch
    self.random = random
    diskSize = Self.size(chosen, &self.random)
  }

  /// A size with several L2 tables where the cluster size lets that be small, and an odd end.
  private static func size(_ chosen: MatrixCase, _ random: inout SeededGenerator) -> UInt64 {
    let isSparse = chosen.preallocation == .off && random.chance(10)
    let megabytes: ClosedRange<UInt64> =
      switch chosen.clusterBits {
      case 9: 1...2
      case 12: 2...6
      case 14: isSparse ? 40...70 : 2...6
      case 16: isSparse ? 513...530 : 3...8
      default: 7...17
      }
    let odd = UInt64.random(in: 0..<(2 * chosen.clusterSize / 512 + 8), using: &random) * 512
    return UInt64.random(in: megabytes, using: &random) << 20 + odd
  }

  /// Makes everything.
  ///
  /// With a snapshot, there is one called `before`, whose contents are in `before.raw`.
  mutating func build() throws -> MatrixDisk {
    let below = try makeBacking()
    let disk = try make("image.qcow2", chosen, size: diskSize, upon: below)
    try fill(disk, chosen, size: diskSize, count: 8)
    if chosen.hasSnapshot {
      try disk.convert(to: scratch.file("before.raw"))
      try disk.image("snapshot", "-c", "before")
      try fill(disk, chosen, size: diskSize, count: 5, compressing: false)
    }
    try scratch.removeData()
    return disk
  }

  // MARK: Backing files

  private struct Below {
    let name: String
    let format: String
    var ciphers: [MatrixCase.Cipher] = [.plain]
  }

  private mutating func makeBacking() throws -> Below? {
    switch chosen.backing {
    case .none: return nil
    case .raw: return try makeRaw(length: backingLength())
    case .qcow2: return try makeLayer("backing.qcow2", length: backingLength(), upon: nil)
    case .chain:
      let base =
        random.chance(50)
        ? try makeRaw(length: otherLength())
        : try makeLayer("base.qcow2", length: otherLength(), upon: nil)
      let middle = try makeLayer("middle.qcow2", length: otherLength(), upon: base)
      return try makeLayer("backing.qcow2", length: backingLength(), upon: middle)
    }
  }

  /// Bytes; in raw files any number, images have whole sectors of it.
  private mutating func backingLength() -> UInt64 {
    switch chosen.backingLength {
    case .shorter: UInt64.random(in: (diskSize / 4)...(diskSize - 512), using: &random)
    case .equal:
      random.chance(50) ? diskSize : diskSize - UInt64.random(in: 0..<512, using: &random)
    case .longer: diskSize + UInt64.random(in: 1...(1 << 20), using: &random)
    }
  }

  private mutating func otherLength() -> UInt64 {
    UInt64.random(in: (diskSize / 3)...(diskSize + diskSize / 4), using: &random)
  }

  private mutating func makeRaw(length: UInt64) throws -> Below {
    let file = try Shadow(scratch.file("base.raw"), size: length)
    var source = OperationSource(random.fork(), clusterSize: 65536, diskSize: length & ~511)
    for _ in 0..<14 {
      let operation = source.operation()
      if operation.kind == .write { try file.apply(operation, zeroed: 0..<0) }
    }
    // The bytes that are no whole sector.
    let tail = (0..<(length & 511)).map { _ in UInt8.random(in: 1...255, using: &random) }
    try tail.withUnsafeBytes { try file.write($0, at: length & ~511) }
    return Below(name: "base.raw", format: "raw")
  }

  private mutating func makeLayer(
    _ name: String, length: UInt64, upon below: Below?
  ) throws -> Below {
    let size = (length + 511) & ~511
    let kind = layerCase()
    let layer = try make(name, kind, size: size, upon: below)
    try fill(layer, kind, size: size, count: 6)
    return Below(name: name, format: "qcow2", ciphers: layer.ciphers)
  }

  /// What a backing image is like: anything in one file, encrypted or not as it happens.
  private mutating func layerCase() -> MatrixCase {
    while true {
      let drawn = MatrixCase(
        choices: MatrixCase.counts.map { Int.random(in: 0..<$0, using: &random) })
      if drawn.isValid && drawn.cipher != .luks && drawn.dataFile == .none
        && drawn.preallocation == .off && drawn.backing == .none && !drawn.hasSnapshot
      {
        return drawn
      }
    }
  }

  // MARK: Images

  private func make(
    _ name: String, _ kind: MatrixCase, size: UInt64, upon below: Below?
  ) throws -> MatrixDisk {
    var disk = MatrixDisk(
      path: scratch.file(name), ciphers: [kind.cipher] + (below?.ciphers ?? []))
    var options = kind.options
    if kind.dataFile != .none {
      disk.dataFile = scratch.file(name + ".data")
      options += ",data_file=\(scratch.file(name + ".data"))"
    }
    if kind.cipher != .plain {
      options += ",encrypt.format=\(kind.cipher),encrypt.key-secret=secret"
    }
    if kind.cipher == .luks { options += ",encrypt.iter-time=10" }
    var words = ["qemu-img", "create", "-q"] + MatrixDisk.secret + ["-f", "qcow2", "-o", options]
    if let below { words += ["-u", "-b", below.name, "-F", below.format] }
    try mustRunQEMU(words + [disk.path, String(size)])
    return disk
  }

  /// Gives an image contents: clusters compressed where nothing is yet, then anything.
  private mutating func fill(
    _ disk: MatrixDisk, _ kind: MatrixCase, size: UInt64, count: Int, compressing: Bool = true
  ) throws {
    var commands: [String] = []
    var source = OperationSource(
      random.fork(), clusterSize: kind.clusterSize, subclusterSize: kind.subclusterSize,
      diskSize: size)
    if compressing && kind.contents != .plain { commands += try compressed(kind, size) }
    for _ in 0..<count {
      let operation = source.operation()
      let place = "\(operation.range.lowerBound) \(operation.range.count)"
      switch operation.kind {
      case .write: commands.append("write -s \(try scratch.data(of: operation)) \(place)")
      case .writeZeroes:
        commands.append("write -z \(operation.keepsAllocation ? "" : "-u ")\(place)")
      case .discard: commands.append("discard \(place)")
      case .read, .flush: break
      }
    }
    if !commands.isEmpty { try disk.io(commands) }
    // A refcount of one bit makes QEMU leak clusters that it compresses into.
    if kind.width == 1 && kind.contents != .plain {
      _ = try runQEMU(
        ["qemu-img", "check", "-q", "-r", "leaks"] + MatrixDisk.secret
          + ["--image-opts", disk.qemu])
    }
  }

  /// Writes of whole clusters, compressed; the disk's last one may be partial.
  private mutating func compressed(_ kind: MatrixCase, _ size: UInt64) throws -> [String] {
    let clusters = (size + kind.clusterSize - 1) / kind.clusterSize
    var commands: [String] = []
    var next: UInt64 = 0
    while next < clusters && commands.count < 24 {
      let count = UInt64.random(in: 1...4, using: &random)
      let start = next * kind.clusterSize
      let end = min(start + count * kind.clusterSize, size)
      let operation = GuestOperation(
        kind: .write, range: start..<max(end, start), stamp: random.next() >> 32)
      if end > start && end - start <= 4 << 20 {
        commands.append(
          "write -c -s \(try scratch.data(of: operation)) \(start) \(end - start)")
      }
      next += count + UInt64.random(in: 0...(clusters / 24 + 2), using: &random)
    }
    return commands
  }
}
