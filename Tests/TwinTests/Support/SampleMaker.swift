import TestTools

/// Makes a sample with qemu-img and qemu-io alone.
struct SampleMaker {
  private let sample: Sample
  private let shape: SampleShape
  private var random: SeededGenerator

  init(_ sample: Sample) {
    self.sample = sample
    shape = sample.shape
    random = SeededGenerator(seed: sample.seed)
  }

  mutating func make() throws {
    let backing = try makeBacking()
    var words = ["create", "-q", "-f", "qcow2"] + sample.object
    words += ["-o", shape.createOptions.joined(separator: ",")]
    if let (name, format) = backing { words += ["-b", name, "-F", format] }
    try image(words + [Sample.name, String(shape.size)])
    if shape.hasBitmaps {
      try image(["bitmap", "--add", "-g", "64k"] + sample.named + ["first"])
      try image(["bitmap", "--add"] + sample.named + ["second"])
    }
    try write(compressed: shape.isCompressed)
    for number in 0..<shape.snapshots {
      try image(["snapshot", "-c", "snap\(number)"] + sample.named)
      try write(compressed: false)
    }
    if shape.hasVMState { try addVMState() }
    if shape.hasBitmaps { try image(["bitmap", "--disable"] + sample.named + ["second"]) }
  }

  /// The backing file's name and format; nil if there is to be none.
  private mutating func makeBacking() throws -> (String, String)? {
    let size = shape.size / 100 * UInt64(shape.backingLength) / 512 * 512
    switch shape.backing {
    case .none: return nil
    case .raw:
      try image(["create", "-q", "-f", "raw", "base.raw", String(size)])
      try fill("base.raw", "raw", size)
      return ("base.raw", "raw")
    case .qcow2:
      try image(["create", "-q", "-f", "qcow2", "base.qcow2", String(size)])
      try fill("base.qcow2", "qcow2", size)
      return ("base.qcow2", "qcow2")
    case .chain:
      try image(["create", "-q", "-f", "raw", "base.raw", String(size)])
      try fill("base.raw", "raw", size)
      try image(["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "middle.qcow2"])
      try fill("middle.qcow2", "qcow2", size)
      return ("middle.qcow2", "qcow2")
    }
  }

  private mutating func fill(_ name: String, _ format: String, _ size: UInt64) throws {
    let commands = (0..<3).map { _ in write(upTo: size, most: 256 << 10) }
    try io(["-f", format, name], commands)
  }

  /// Writes some data and zeros into the image itself.
  private mutating func write(compressed: Bool) throws {
    let cluster = UInt64(1) << UInt64(shape.clusterBits)
    var commands: [String] = []
    if compressed {
      // Only what is not allocated can be written so.
      var taken: Set<UInt64> = []
      for _ in 0..<4 {
        let start = place(cluster, length: cluster, in: shape.size)
        if start + cluster <= shape.size, taken.insert(start).inserted {
          commands.append("write -c -P \(1 + random.below(250)) \(start) \(cluster)")
        }
      }
    }
    for _ in 0..<4 { commands.append(write(upTo: shape.size, most: 128 << 10)) }
    for flags in ["-z", "-z -u", ""] {
      let length = min(cluster * UInt64(1 + random.below(3)), shape.size)
      let start = place(cluster, length: length, in: shape.size)
      commands.append(
        flags.isEmpty
          ? "discard \(start) \(min(length, shape.size - start))"
          : "write \(flags) \(start) \(min(length, shape.size - start))")
    }
    let target =
      sample.isEncrypted
      ? sample.object + ["--image-opts", sample.options] : ["-f", "qcow2", Sample.name]
    try io(["-d", "unmap"] + target, commands)
  }

  private mutating func write(upTo size: UInt64, most: UInt64) -> String {
    let length = max(512, UInt64(random.below(Int(min(most, size)))) / 512 * 512)
    let start = place(512, length: length, in: size)
    return "write -P \(1 + random.below(250)) \(start) \(min(length, size - start))"
  }

  /// A multiple of `unit`, near the start or the end more often than elsewhere.
  private mutating func place(_ unit: UInt64, length: UInt64, in size: UInt64) -> UInt64 {
    let room = size > length ? size - length : 0
    let near = min(room, 2 << 20)
    let offset =
      switch random.below(4) {
      case 0: room - UInt64(random.below(Int(near) + 1))
      case 1: UInt64(random.below(Int(min(room, 1 << 60)) + 1))
      default: UInt64(random.below(Int(near) + 1))
      }
    return offset / unit * unit
  }

  /// Gives the last snapshot VM state, as a hypervisor would have written it.
  private func addVMState() throws {
    let path = sample.directory.file(Sample.name)
    let bytes = try contents(path)
    func number(_ offset: Int, _ count: Int) -> Int {
      bytes[offset..<offset + count].reduce(0) { $0 << 8 | Int($1) }
    }
    var entry = number(64, 8)
    for _ in 1..<number(60, 4) {
      let length = 40 + number(entry + 36, 4) + number(entry + 12, 2) + number(entry + 14, 2)
      entry += (length + 7) / 8 * 8
    }
    try patch(path, at: entry + 24, [0, 0, 0, 0x12, 0x34, 0x56, 0x78, 0x9a])  // VM clock
    try patch(path, at: entry + 32, [0, 0x2a, 0, 0])  // VM state size
    if number(entry + 36, 4) >= 8 { try patch(path, at: entry + 40, [0, 0, 0, 0, 0, 0x2a, 0, 0]) }
  }

  private func image(_ words: [String]) throws {
    try Tools.mustQEMU("qemu-img", words, in: sample.path)
  }

  private func io(_ target: [String], _ commands: [String]) throws {
    try Tools.mustQEMU("qemu-io", target + commands.flatMap { ["-c", $0] }, in: sample.path)
  }
}
