import BlockCore
import TestTools
import Testing

/// qemu-io and our engine write the same image in turn; each must read what the other wrote.
@Suite(.enabled(if: hasQEMU, Qemu.reason))
struct QemuWritesTests {
  @Test func whatQemuWritesWeReadAndContinue() throws {
    var random = SeededGenerator(seed: runSeed ^ 0x51)
    for combination in Combination.sample(&random).shuffled(using: &random).prefix(24) {
      let seed = random.next()
      do {
        try alternate(combination, SeededGenerator(seed: seed))
      } catch {
        Issue.record("QUBLK_SEED=\(runSeed) \(combination): \(error)")
      }
    }
  }

  private func alternate(_ combination: Combination, _ seeded: SeededGenerator) throws {
    var random = seeded
    let scratch = try Scratch()
    let path = scratch.file("image.qcow2")
    let size = combination.diskSize(&random)
    try combination.create(path, size: size)
    var source = OperationSource(
      random.fork(), clusterSize: combination.clusterSize, diskSize: size)
    for round in 0..<3 {
      let commands = (0..<60).compactMap { _ in qemuCommand(source.operation(), &random) }
      try Qemu.io(path, commands)
      if round == 0 && combination.hasSnapshot {
        try mustRun("qemu-img", "snapshot", "-c", "before", path)
        try mustRun(
          "qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, scratch.file("before.raw"))
      }
      let raw = scratch.file("\(round).raw")
      try mustRun("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw)
      let shadow = try Shadow(raw, size: size)
      try readAndWrite(path, shadow, &source, &random)
      try judge(path, shadow)
    }
    if combination.hasSnapshot {
      try mustRun("qemu-img", "snapshot", "-a", "before", path)
      try judge(path, try Shadow(scratch.file("before.raw"), size: size))
    }
  }

  private func readAndWrite(
    _ path: String, _ shadow: Shadow, _ source: inout OperationSource,
    _ random: inout SeededGenerator
  ) throws {
    try withImage(path, &random, readOnly: true) { try await $0.verify(shadow) }
    var work: [[GuestOperation]] = []
    for _ in 0..<8 { work.append(source.batch(6)) }
    let batches = work
    try withImage(path, &random) { session in
      for batch in batches { try await session.perform(batch, shadow) }
      try await session.verify(shadow)
    }
  }

  /// The request in qemu-io's words; nil for one that has none.
  private func qemuCommand(_ operation: GuestOperation, _ random: inout SeededGenerator) -> String?
  {
    let place = "\(operation.range.lowerBound) \(operation.range.count)"
    switch operation.kind {
    case .write: return "write -P \(operation.stamp & 0xff) \(place)"
    case .writeZeroes: return "write -z \(operation.keepsAllocation ? "" : "-u ")\(place)"
    case .discard: return "discard \(place)"
    case .flush: return "flush"
    case .read: return random.chance(50) ? "read \(place)" : nil
    }
  }
}
