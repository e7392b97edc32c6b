import TestTools
import Testing

/// Random scripts on twin images of random kinds: equal texts, equal disks, sound images.
@Suite(.enabled(if: hasQEMU, "needs qemu-img and qemu-io")) struct IORandomTests {
  @Test(arguments: 0..<16) func theSameScriptDoesTheSame(_ round: Int) throws {
    let first = testSeed("IORandomTests", fallback: .random(in: 0...UInt64.max))
    var script = RandomScript(seed: first &+ UInt64(round))
    let directory = try TemporaryDirectory()
    var create = ["-o", script.imageOptions]
    if let size = script.backingSize {
      let base = try directory.image("base.qcow2", size: "\(size)")
      let filled = try run("qemu-io", "-c", "write -P 9 0 \(size)", base)
      try #require(filled.status == 0)
      create += ["-b", base, "-F", "qcow2"]
    }
    let twins = try IOTwins(create + ["\(script.size)"])
    for _ in 0..<3 {
      try twins.expectAlike(script.commands(count: 15), options: script.options)
      try twins.expectEqualImages()
    }
  }
}

private struct RandomScript {
  private(set) var size: UInt64 = 0
  private(set) var imageOptions = ""
  private(set) var backingSize: UInt64?
  private(set) var options: [String] = []
  private var random: SeededGenerator
  private var cluster: UInt64 = 0
  /// Up to here compressed data has been written: QEMU refuses to write it where anything is.
  private var compressed: UInt64 = 0

  init(seed: UInt64) {
    random = SeededGenerator(seed: seed)
    cluster = pick([512, 4096, 65536, 2 << 20])
    size = pick([1 << 20, 4 << 20, (4 << 20) - 512, 3 * 65536 + 1024])
    imageOptions = "cluster_size=\(cluster)"
    if below(4) == 0 {
      imageOptions += ",compat=0.10"
    } else {
      if below(3) == 0 { imageOptions += ",lazy_refcounts=on" }
      if below(3) == 0 { imageOptions += ",compression_type=zstd" }
      if cluster >= 65536, below(2) == 0 { imageOptions += ",extended_l2=on" }
    }
    if below(2) == 0 { backingSize = pick([size, size / 1024 * 512, size * 2]) }
    options = pick([[], ["-n"], ["-n", "-m"], ["-t", "writethrough"]])
  }

  private mutating func below(_ bound: UInt64) -> UInt64 {
    UInt64(random.below(Int(bound)))
  }

  private mutating func pick<T>(_ values: [T]) -> T { values[Int(below(UInt64(values.count)))] }

  private mutating func range() -> (offset: UInt64, count: UInt64) {
    let isWhole = below(2) == 0
    let offset = isWhole ? below(size) & ~511 : below(size)
    let wanted: UInt64 = pick([1, 511, 512, 4096, 65536, 100_000, 300_000])
    return (offset, min(isWhole ? (wanted + 511) & ~511 : wanted, size - offset))
  }

  mutating func commands(count: Int) -> [String] {
    var commands: [String] = []
    if compressed == 0 {
      while compressed < size && commands.count < 8 {
        let offset = min(compressed + cluster * below(4), size)
        let length = min(cluster * (1 + below(3)), size - offset)
        commands.append("write -c -P \(below(256)) \(offset) \(length)")
        compressed = offset + max(length, cluster)
      }
    }
    return commands + (0..<count).map { _ in command() }
  }

  private mutating func command() -> String {
    let (offset, count) = range()
    switch below(10) {
    case 0...3: return "write -P \(below(256)) \(offset) \(count)"
    case 4: return "write -z \(pick(["", "-u", "-f"])) \(offset) \(count)"
    case 5: return "writev -f \(offset) \(count / 2) \(count - count / 2)"
    case 6...7: return "read -v \(offset) \(min(count, 2000))"
    case 8: return "read -P \(below(256)) \(offset) \(count)"
    default: return pick(["flush", "length", "aio_flush"])
    }
  }
}
