import QCOW2Engine
import TestTools
import Testing

/// qemu-img makes images of every kind, our engine writes them, qemu-img judges.
@Suite(.enabled(if: hasQEMU, Qemu.reason))
struct EngineWritesTests {
  @Test func whatWeWriteQemuReadsAndFindsInOrder() throws {
    var random = SeededGenerator(seed: runSeed)
    for combination in Combination.sample(&random) {
      let seed = random.next()
      do {
        try writeAndCompare(combination, SeededGenerator(seed: seed))
      } catch {
        Issue.record("QUBLK_SEED=\(runSeed) \(combination): \(error)")
      }
    }
  }

  private func writeAndCompare(_ combination: Combination, _ seeded: SeededGenerator) throws {
    var random = seeded
    let scratch = try Scratch()
    let path = scratch.file("image.qcow2")
    let size = combination.diskSize(&random)
    try combination.create(path, size: size)
    let shadow = try Shadow(scratch.file("shadow.raw"), size: size)
    var source = OperationSource(
      random.fork(), clusterSize: combination.clusterSize, diskSize: size)
    if combination.hasSnapshot {
      try work(path, shadow, &source, &random, batches: 8)
      try mustRun("qemu-img", "snapshot", "-c", "before", path)
      try mustRun("cp", "--sparse=always", shadow.path, scratch.file("before.raw"))
    }
    try work(path, shadow, &source, &random, batches: 25)
    try judge(path, shadow)
    if combination.hasSnapshot {
      let then = scratch.file("then.raw")
      try mustRun(
        "qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-l", "snapshot.name=before", path,
        then)
      if let difference = try Qemu.rawDifference(then, scratch.file("before.raw")) {
        throw Mismatch(description: "the snapshot has changed: \(difference)")
      }
    }
  }

  private func work(
    _ path: String, _ shadow: Shadow, _ source: inout OperationSource,
    _ random: inout SeededGenerator,
    batches: Int
  ) throws {
    var work: [[GuestOperation]] = []
    for _ in 0..<batches {
      work.append(source.batch(Int.random(in: 1...8, using: &random)))
    }
    let batches = work
    try withImage(path, &random) { session in
      for batch in batches {
        do {
          try await session.perform(batch, shadow)
        } catch {
          throw Mismatch(description: "\(error) in \(batch)")
        }
        await session.image.maintain()
      }
      try await session.verify(shadow)
    }
  }
}

/// Throws if qemu-img finds the image out of order, or other than the shadow.
func judge(_ path: String, _ shadow: Shadow) throws {
  if let complaint = try Qemu.complaint(path) {
    throw Mismatch(description: "qemu-img check: \(complaint)")
  }
  if let difference = try Qemu.difference(path, raw: shadow.path) {
    throw Mismatch(description: "qemu-img compare: \(difference)")
  }
}
