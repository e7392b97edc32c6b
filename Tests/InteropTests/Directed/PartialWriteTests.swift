import BlockCore
import TestTools
import Testing

/// What the middle cluster of three is before a part of it is written.
struct ClusterState: Sendable, CustomTestStringConvertible {
  let name: String
  var options = ""
  /// What qemu-io does to the image.
  var commands: [String] = []
  var hasBacking = false
  var hasSnapshot = false

  var testDescription: String { name }

  static let all: [ClusterState] = [
    .init(name: "unallocated"),
    .init(name: "data", commands: ["write -P 3 0 200k"]),
    .init(
      name: "neighbours in reverse order",
      commands: [
        "write -P 3 128k 64k", "write -P 4 64k 64k", "write -P 5 0 64k",
      ]),
    .init(
      name: "zlib",
      commands: ["write -c -P 3 0 64k", "write -c -P 4 64k 64k", "write -c -P 5 128k 64k"]),
    .init(
      name: "zstd", options: ",compression_type=zstd",
      commands: ["write -c -P 3 0 64k", "write -c -P 4 64k 64k", "write -c -P 5 128k 64k"]),
    .init(
      name: "zlib with subclusters", options: ",extended_l2=on",
      commands: ["write -c -P 3 0 64k", "write -c -P 4 64k 64k", "write -c -P 5 128k 64k"]),
    .init(name: "zero", commands: ["write -P 3 0 200k", "write -z -u 64k 64k"]),
    .init(name: "zero, still allocated", commands: ["write -P 3 0 200k", "write -z 64k 64k"]),
    .init(name: "zero over backing", commands: ["write -z -u 64k 64k"], hasBacking: true),
    .init(
      name: "discarded over backing", commands: ["write -P 3 0 200k", "discard 64k 64k"],
      hasBacking: true),
    .init(name: "backing", hasBacking: true),
    .init(name: "backing, version 2", options: ",compat=0.10", hasBacking: true),
    .init(name: "backing with subclusters", options: ",extended_l2=on", hasBacking: true),
    .init(
      name: "some subclusters data, some zero", options: ",extended_l2=on",
      commands: ["write -P 3 64k 3k", "write -z 70k 4k", "write -P 4 100k 2k"], hasBacking: true),
    .init(name: "shared with a snapshot", commands: ["write -P 3 0 200k"], hasSnapshot: true),
    .init(
      name: "compressed, shared with a snapshot",
      commands: ["write -c -P 3 0 64k", "write -c -P 4 64k 64k", "write -c -P 5 128k 64k"],
      hasSnapshot: true),
    .init(
      name: "subclusters shared with a snapshot", options: ",extended_l2=on",
      commands: ["write -P 3 64k 3k", "write -z 70k 4k"], hasBacking: true, hasSnapshot: true),
  ]
}

/// A part of a cluster in every state, and all around it [COW-1, 2, 3, 5, 7, 9; COMP-1; ENC-2, 3,
/// 4].
@Suite(.enabled(if: hasQEMU, Qemu.reason))
struct PartialWriteTests {
  /// LUKS with some only: qemu-img takes seconds to make such an image.
  static let trials = ClusterState.all.enumerated().flatMap { index, state in
    MatrixCase.ciphers.filter { $0 != .luks || index % 3 == 0 }.map { (state, $0) }
  }

  static let operations: [GuestOperation] = [
    .write(67_072, 1024), .write(66_048, 512), .write(60 << 10, 8 << 10),
    .write(126 << 10, 5 << 10), .zero(67_072, 1024), .zero(68_608, 9 << 10, keeps: true),
    .discard(66_048, 70 << 10),
  ]

  @Test(arguments: share(of: trials))
  func aPartialWriteLeavesEverythingAroundItAsItWas(
    _ state: ClusterState, _ cipher: MatrixCase.Cipher
  ) throws {
    var random = SeededGenerator(seed: runSeed)
    let original = try make(state, cipher)
    let before = state.hasSnapshot ? try original.shadow("before.raw") : nil
    if state.hasSnapshot { try original.disk.image("snapshot", "-c", "before") }
    for (index, operation) in Self.operations.enumerated() {
      // What a discard does to part of a compressed cluster is nothing, which the shadow can't
      // know.
      if operation.kind == .discard && state.name == "zlib with subclusters" { continue }
      let image = try original.copy("copy\(index).qcow2")
      let shadow = try image.shadow()
      do {
        try image.perform([operation], shadow, &random)
        try image.judge(shadow)
        if let before { try requireSnapshot(image, before) }
      } catch { throw Mismatch(description: "\(operation): \(error)") }
    }
  }

  private func make(
    _ state: ClusterState, _ cipher: MatrixCase.Cipher
  ) throws -> DirectedImage {
    let scratch = try Scratch()
    if state.hasBacking {
      // Ends in the middle of a sector of the middle cluster.
      let base = try Shadow(scratch.file("base.raw"), size: 100_001)
      let bytes = (0..<100_001).map { UInt8(truncatingIfNeeded: $0 / 512 + 1) }
      try bytes.withUnsafeBytes { try base.write($0, at: 0) }
    }
    let image = try DirectedImage(
      "cluster_size=64k" + state.options, size: 200 << 10, cipher: cipher,
      backing: state.hasBacking ? ("base.raw", "raw", .plain) : nil, in: scratch)
    if !state.commands.isEmpty { try image.disk.io(state.commands) }
    return image
  }

  private func requireSnapshot(_ image: DirectedImage, _ before: Shadow) throws {
    let then = image.scratch.file("then.raw")
    try image.disk.convert(to: then, snapshot: "before")
    if let difference = try Qemu.rawDifference(then, before.path) {
      throw Mismatch(description: "the snapshot has changed: \(difference)")
    }
  }
}
