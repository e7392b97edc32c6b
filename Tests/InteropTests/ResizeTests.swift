import BlockCore
import Glibc
import HostFiles
import QCOW2Engine
import TestTools
import Testing
import Uring

/// Sizes changed by our engine, and by qemu-img on a twin.
@Suite(.enabled(if: hasQEMU, Qemu.reason))
struct ResizeTests {
  static let options = [
    "cluster_size=512", "cluster_size=512,refcount_bits=64", "cluster_size=4096,compat=0.10",
    "cluster_size=65536", "cluster_size=2M,refcount_bits=1",
    "cluster_size=65536,extended_l2=on", "cluster_size=4096,preallocation=metadata",
  ]

  enum Variant: CaseIterable, Sendable { case wholeClusters, anySize, withSnapshot }

  static let pairs = options.flatMap { options in Variant.allCases.map { (options, $0) } }

  @Test("Both ways, again and again, as qemu-img does it", arguments: share(of: pairs))
  func asQemuDoes(options: String, variant: Variant) throws {
    let hasSnapshot = variant == .withSnapshot
    let isOdd = variant != .wholeClusters
    if hasSnapshot && (options.contains("compat=0.10") || options.contains("_bits=1")) { return }
    var random = SeededGenerator(seed: runSeed)
    let scratch = try Scratch()
    let path = try makeImage(scratch, options, size: "5M")
    let twin = scratch.file("twin.qcow2")
    let shadow = scratch.file("shadow.raw")
    try Qemu.io(path, ["write -P 1 0 5M", "discard 1M 1M", "write -P 2 1536k 3k"])
    if hasSnapshot {
      try mustRun("qemu-img", "snapshot", "-c", "one", path)
      try Qemu.io(path, ["write -P 3 3M 1M"])
    }
    try mustRun("cp", path, twin)
    try mustRun("qemu-img", "convert", "-O", "raw", path, shadow)
    for step in 0..<8 {
      var size = UInt64.random(in: 0...(step % 2 == 0 ? 12000 : 60000), using: &random) * 1024
      // qemu-img resizes to no size of 0.
      if !isOdd { size = max(size - size % (2 << 20), 2 << 20) }
      if isOdd { size = max(size, 1024) }
      let wanted = size
      try withEngine(path) { image in
        try await image.resize(to: wanted)
        guard image.size == wanted else { throw Mismatch(description: "size \(image.size)") }
        if wanted > 0 { try await image.writePattern(9, at: wanted - 512, count: 512) }
        await image.maintain()
      }
      try mustRun("qemu-img", "resize", "-q", "--shrink", twin, String(size))
      try mustRun("truncate", "-s", String(size), shadow)
      if size > 0 {
        try Qemu.io(twin, ["write -P 9 \(size - 512) 512"])
        try mustRun("qemu-io", "-f", "raw", "-c", "write -P 9 \(size - 512) 512", shadow)
      }
      let place: Comment = "seed \(runSeed), step \(step), size \(size)"
      #expect(try Qemu.complaint(path) == nil, place)
      #expect(try Qemu.difference(path, raw: shadow) == nil, place)
      // After odd sizes qemu-img 7.2 shows in the last cluster what was there before a cut.
      if !isOdd { #expect(try run(["qemu-img", "compare", path, twin]).succeeded, place) }
      #expect(try virtualSize(path) == virtualSize(twin))
    }
    if hasSnapshot { try mustRun("qemu-img", "snapshot", "-a", "one", path) }
    #expect(try Qemu.complaint(path) == nil)
  }

  private func virtualSize(_ path: String) throws -> [UInt8] {
    Array(try contents(path)[24..<32])
  }

  @Test("A longer backing file does not show in what is added", arguments: ["1.1", "0.10"])
  func backingStaysHidden(compat: String) throws {
    let scratch = try Scratch()
    let base = scratch.file("base.raw")
    try mustRun("qemu-img", "create", "-q", "-f", "raw", base, "40M")
    try mustRun("qemu-io", "-f", "raw", "-c", "write -P 7 0 40M", base)
    let path = scratch.file("image.qcow2")
    let size = (5 << 20) + 3 * 512
    try mustRun(
      "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4096,compat=\(compat)",
      "-b", base, "-F", "raw", path, String(size))
    try withEngine(path, backing: base) { image in
      try await image.writePattern(1, at: 4096, count: 512)
      try await image.resize(to: 50 << 20)
      try await image.writePattern(2, at: 30 << 20, count: 512)
      try await image.resize(to: 2 << 20)
      try await image.resize(to: 44 << 20)
    }
    #expect(try Qemu.complaint(path) == nil)
    try Qemu.io(
      path, ["read -P 1 4k 512", "read -P 7 8k \((2 << 20) - 8192)", "read -P 0 2M 42M"])
  }

  @Test("Compressed clusters behind the end are given back")
  func compressedClustersAreFreed() throws {
    let scratch = try Scratch()
    let path = scratch.file("image.qcow2")
    let raw = scratch.file("raw")
    try mustRun("qemu-img", "create", "-q", "-f", "raw", raw, "20M")
    try mustRun("qemu-io", "-f", "raw", "-c", "write -P 7 0 20M", raw)
    try mustRun("qemu-img", "convert", "-c", "-O", "qcow2", raw, path)
    try withEngine(path) { image in
      try await image.resize(to: (7 << 20) + 512)
      try await image.resize(to: 9 << 20)
    }
    #expect(try Qemu.complaint(path) == nil)
    try Qemu.io(path, ["read -P 7 0 \((7 << 20) + 512)", "read -P 0 \((7 << 20) + 512) 2096640"])
  }

  @Test("A data file gets the size of the disk", arguments: [false, true])
  func dataFileFollows(isRaw: Bool) throws {
    let scratch = try Scratch()
    let data = scratch.file("data")
    let options =
      "cluster_size=4096,data_file=\(data),data_file_raw=\(isRaw ? "on" : "off")"
    let path = try makeImage(scratch, options, size: "5M")
    try Qemu.io(path, ["write -P 1 0 5M"])
    let sizes: [UInt64] = [9 << 20, (3 << 20) + 512, 20 << 20]
    for size in sizes {
      try withEngine(path, dataFile: data) { image in
        try await image.resize(to: size)
        try await image.writePattern(3, at: size - 512, count: 512)
      }
      #expect(try Qemu.complaint(path) == nil)
      if isRaw {
        #expect(try Qemu.difference(path, raw: data) == nil)
        #expect(try contents(data).count == Int(size))
      }
    }
    try Qemu.io(
      path,
      [
        "read -P 1 0 3M", "read -P 3 3M 512", "read -P 0 \((3 << 20) + 512) \((17 << 20) - 1024)",
        "read -P 3 \((20 << 20) - 512) 512",
      ])
  }

  @Test("What qemu-img refuses is refused, with the reason")
  func refusals() throws {
    let scratch = try Scratch()
    let path = try makeImage(scratch, "cluster_size=512,compat=0.10")
    try mustRun("qemu-img", "snapshot", "-c", "one", path)
    #expect(try message(path, 4 << 20).hasSuffix("internal snapshots and is of version 2"))
    #expect(try !run(["qemu-img", "resize", path, "4M"]).succeeded)
    let other = try makeImage(scratch, "cluster_size=512,compat=1.1")
    #expect(try message(other, 1000).hasSuffix("not a multiple of 512"))
    #expect(
      try message(other, 1 << 50).hasSuffix("largest size with this cluster size is 137438953472"))
    #expect(try !run(["qemu-img", "resize", other, "1P"]).succeeded)
  }

  @Test("QEMU finds bitmaps that fit the disk after each size")
  func bitmapsFollow() throws {
    let scratch = try Scratch()
    let path = try makeImage(scratch, "cluster_size=512,compat=1.1")
    try mustRun("qemu-img", "bitmap", "--add", "-g", "512", path, "a")
    try mustRun("qemu-img", "bitmap", "--add", "-g", "64k", path, "b")
    try mustRun("qemu-img", "bitmap", "--disable", path, "b")
    for size: UInt64 in [(40 << 20) + 512, 3 << 20, 41 << 20, 1 << 30, 5 << 20] {
      try withEngine(path) { image in
        try await image.resize(to: size)
        try await image.writePattern(3, at: size - 512, count: 512)
      }
      #expect(try Qemu.complaint(path) == nil)
      let info = try mustRun("qemu-img", "info", path)
      #expect(info.contains("name: a") && info.contains("name: b"), "\(size): \(info)")
      #expect(!info.contains("in-use"), "\(size): \(info)")
    }
  }

  private func message(_ path: String, _ size: UInt64) throws -> String {
    let error = #expect(throws: ImageError.self) {
      try withEngine(path) { try await $0.resize(to: size) }
    }
    return error?.message ?? ""
  }

  @Test("512-byte clusters up to their largest disk")
  func largestDisk() throws {
    let scratch = try Scratch()
    let path = try makeImage(scratch, "cluster_size=512", size: "1M")
    try withEngine(path) { image in
      try await image.writePattern(1, at: 0, count: 1 << 20)
      try await image.resize(to: 1 << 30)
      try await image.writePattern(2, at: (1 << 30) - 512, count: 512)
      try await image.resize(to: 128 << 30)
      try await image.writePattern(3, at: (128 << 30) - 512, count: 512)
    }
    #expect(try Qemu.complaint(path) == nil)
    try Qemu.io(
      path,
      [
        "read -P 1 0 1M", "read -P 2 \((1 << 30) - 512) 512",
        "read -P 3 \((128 << 30) - 512) 512", "read -P 0 50G 1M",
      ])
  }
}
