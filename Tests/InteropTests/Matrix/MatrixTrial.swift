import BlockCore
import DiskImages
import Glibc
import QCOW2Engine
import TestTools

/// One combination from beginning to end.
struct MatrixTrial {
  let chosen: MatrixCase
  private let scratch: Scratch
  private var random: SeededGenerator
  private let disk: MatrixDisk
  private let diskSize: UInt64

  init(_ chosen: MatrixCase, _ random: SeededGenerator) throws {
    self.chosen = chosen
    self.random = random
    scratch = try Scratch()
    var builder = MatrixBuilder(chosen, scratch, self.random.fork())
    diskSize = builder.diskSize
    disk = try builder.build()
  }

  /// Twins, one written by us and one by QEMU; then each by the other.
  mutating func run() throws {
    let shadow = try makeShadow()
    var ours = try disk.copy(to: scratch.file("ours.qcow2"))
    var theirs = try disk.copy(to: scratch.file("theirs.qcow2"))
    try read(ours, shadow, "what QEMU made")
    var source = OperationSource(
      random.fork(), clusterSize: chosen.clusterSize, subclusterSize: chosen.subclusterSize,
      diskSize: diskSize)
    for round in ["in turn", "swapped"] {
      let stream = MatrixStream(
        &source, &random, chosen, diskSize: diskSize, batches: 10)
      try write(ours, stream, shadow, round)
      try theirs.io(stream.commands(scratch, &random))
      try scratch.removeData()
      try repairLeaks(theirs)
      try judge(ours, theirs, shadow, round)
      swap(&ours, &theirs)
    }
  }

  private func makeShadow() throws -> Shadow {
    let raw = scratch.file("shadow.raw")
    try disk.convert(to: raw)
    return try Shadow(raw, size: diskSize)
  }

  private mutating func read(_ disk: MatrixDisk, _ shadow: Shadow, _ what: String) throws {
    do {
      try withImage(disk.options(readOnly: true), &random) { try await $0.verify(shadow) }
    } catch { throw Mismatch(description: "reading \(what): \(error)") }
  }

  private mutating func write(
    _ disk: MatrixDisk, _ stream: MatrixStream, _ shadow: Shadow, _ round: String
  ) throws {
    var options = disk.options(readOnly: false)
    options.engine.compressesWrites = chosen.contents != .plain && random.chance(50)
    options.engine.copyOnRead = chosen.backing != .none && random.chance(30)
    if random.chance(30) { options.engine.dirtyAgeMilliseconds = 0 }
    do {
      try withImage(options, &random) { session in
        for batch in stream.batches {
          do { try await session.perform(batch, shadow) } catch {
            throw Mismatch(description: "\(error) in \(batch)")
          }
          await session.image.maintain()
        }
        try await session.verify(shadow)
        for operation in stream.settling {
          try await session.perform(operation, slot: 0, shadow)
        }
      }
    } catch {
      throw Mismatch(
        description: "writing, \(round)"
          + (options.engine.compressesWrites ? ", compressing" : "")
          + (options.engine.copyOnRead ? ", copy-on-read" : "") + ": \(error)")
    }
  }

  /// With a refcount of one bit, QEMU leaks clusters when it frees compressed ones.
  private func repairLeaks(_ disk: MatrixDisk) throws {
    guard chosen.width == 1 && chosen.contents != .plain else { return }
    _ = try runQEMU(
      ["qemu-img", "check", "-q", "-r", "leaks"] + MatrixDisk.secret
        + ["--image-opts", disk.qemu])
  }

  /// Everything that must be true of both images after a stream.
  private mutating func judge(
    _ ours: MatrixDisk, _ theirs: MatrixDisk, _ shadow: Shadow, _ round: String
  ) throws {
    try ours.requireClean("ours, \(round)")
    try theirs.requireClean("theirs, \(round)")
    try ours.requireSame(as: theirs, "ours and theirs, \(round)")
    try read(ours, shadow, "ours, \(round)")
    try read(theirs, shadow, "theirs, \(round)")
    for (disk, whose) in [(ours, "ours"), (theirs, "theirs")] {
      if chosen.hasSnapshot { try requireSnapshot(disk, whose, round) }
      if chosen.dataFile == .raw && chosen.cipher == .plain {
        try requireRaw(disk, shadow, whose, round)
      }
    }
  }

  private func requireSnapshot(_ disk: MatrixDisk, _ whose: String, _ round: String) throws {
    let then = scratch.file("then.raw")
    try disk.convert(to: then, snapshot: "before")
    if let difference = try Qemu.rawDifference(then, scratch.file("before.raw")) {
      throw Mismatch(description: "\(whose), \(round): the snapshot has changed: \(difference)")
    }
  }

  /// The raw data file must be the disk, byte for byte.
  private func requireRaw(
    _ disk: MatrixDisk, _ shadow: Shadow, _ whose: String, _ round: String
  ) throws {
    guard let dataFile = disk.dataFile else { return }
    let result = try TestTools.run(["cmp", "-n", String(diskSize), dataFile, shadow.path])
    if !result.succeeded {
      throw Mismatch(description: "\(whose), \(round): the raw data file: \(result.output)")
    }
  }
}
