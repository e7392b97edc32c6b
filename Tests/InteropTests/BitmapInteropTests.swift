import BlockCore
import HostFiles
import QCOW2Engine
import TestTools
import Testing
import Uring

/// qemu-img makes bitmaps, our engine keeps them, QEMU goes on with them.
@Suite(.enabled(if: hasQEMU, Qemu.reason))
struct BitmapInteropTests {
  private static let size = 40 << 20
  /// Name and granularity.
  private static let bitmaps = [("fine", 512), ("usual", 65536), ("coarse", 1 << 20)]

  private func make(_ scratch: Scratch, _ random: inout SeededGenerator) throws -> String {
    let path = scratch.file("image.qcow2")
    let bits = [9, 12, 16].randomElement(using: &random) ?? 16
    try mustRun(
      "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=\(1 << bits)", path,
      "\(Self.size)")
    for (name, granularity) in Self.bitmaps {
      try mustRun("qemu-img", "bitmap", "--add", "-g", "\(granularity)", path, name)
    }
    try mustRun("qemu-img", "bitmap", "--add", "--disable", path, "disabled")
    return path
  }

  /// The bits for ranges, as ranges of bytes.
  private func ranges(_ asked: [Range<UInt64>], granularity: Int) -> [Range<UInt64>] {
    let size = UInt64(granularity)
    var joined: [Range<UInt64>] = []
    for range in asked.sorted(by: { $0.lowerBound < $1.lowerBound }) {
      let start = range.lowerBound / size * size
      let end = (range.upperBound + size - 1) / size * size
      if let last = joined.last, last.upperBound >= start {
        joined[joined.count - 1] = last.lowerBound..<max(last.upperBound, end)
      } else {
        joined.append(start..<end)
      }
    }
    return joined
  }

  private func covers(_ set: [Range<UInt64>], _ asked: [Range<UInt64>]) -> Bool {
    asked.allSatisfy { range in
      set.contains { $0.lowerBound <= range.lowerBound && $0.upperBound >= range.upperBound }
    }
  }

  /// QEMU must find the image in order, and use the bitmaps as if it had kept them itself.
  private func judge(_ path: String, _ name: String) throws {
    #expect(try Qemu.complaint(path) == nil)
    let info = try mustRun("qemu-img", "info", path)
    #expect(!info.contains("in-use") && info.contains("auto"), "\(info)")
    // Merging reads all bits; QEMU refuses to take them from an inconsistent bitmap.
    try mustRun("qemu-img", "bitmap", "--add", path, "merged \(name)")
    for (bitmap, _) in Self.bitmaps {
      try mustRun("qemu-img", "bitmap", "--merge", bitmap, path, "merged \(name)")
    }
    try mustRun("qemu-img", "bitmap", "--remove", path, "merged \(name)")
  }

  @Test func afterACloseQemuFindsTheBitsOfOurRequestsAndNoOthers() throws {
    var random = SeededGenerator(seed: runSeed)
    for _ in 0..<3 {
      let scratch = try Scratch()
      let path = try make(scratch, &random)
      let shadow = try Shadow(scratch.file("shadow.raw"), size: UInt64(Self.size))
      var source = OperationSource(
        random.fork(), clusterSize: 65536, diskSize: UInt64(Self.size))
      var asked: [Range<UInt64>] = []
      for turn in 0..<3 {
        let batches = (0..<6).map { _ in source.batch(Int.random(in: 1...8, using: &random)) }
        for operation in batches.joined() where operation.changesTheDisk {
          asked.append(operation.range)
        }
        try withImage(path, &random) { session in
          for batch in batches {
            try await session.perform(batch, shadow)
            await session.image.maintain()
          }
        }
        try judge(path, "\(turn)")
        // QEMU's own changes come into the same bitmaps.
        let offset = UInt64(Int.random(in: 0..<512, using: &random)) * 65536
        try Qemu.io(path, ["write -P 7 \(offset) 4096"])
        let sevens = [UInt8](repeating: 7, count: 4096)
        try sevens.withUnsafeBytes { try shadow.write($0, at: offset) }
        asked.append(offset..<(offset + 4096))
        let file = try BitmapFile(path)
        #expect(file.autoclear == 1)
        for (name, granularity) in Self.bitmaps {
          #expect(
            try file.setRanges(name) == ranges(asked, granularity: granularity),
            "QUBLK_SEED=\(runSeed), turn \(turn), \(name)")
        }
        #expect(try file.setRanges("disabled") == [])
        #expect(file.entries.count == 4)
        for entry in file.entries { #expect(entry.flags == (entry.name == "disabled" ? 0 : 2)) }
      }
    }
  }

  @Test func afterACrashQemuStillTrustsTheBitmaps() throws {
    var random = SeededGenerator(seed: runSeed &+ 1)
    let scratch = try Scratch()
    let path = try make(scratch, &random)
    var offsets: [UInt64] = []
    for _ in 0..<40 {
      offsets.append(UInt64(Int.random(in: 0..<(Self.size / 4096), using: &random)) * 4096)
    }
    let asked = offsets
    // Never closed: the image is left as a killed daemon leaves it.
    try runBlocking { () async throws(any Error) in
      let file = try RingHostFile.open(path, readOnly: false)
      var options = ImageOptions()
      options.bitmapIntentBytes = 1 << 20
      let image = try await Image.open(file, options: options)
      for offset in asked { try await image.writePattern(5, at: offset, count: 4096) }
    }
    let file = try BitmapFile(path)
    #expect(file.autoclear == 1)
    for (name, _) in Self.bitmaps {
      let set = try file.setRanges(name)
      #expect(covers(set, asked.map { $0..<($0 + 4096) }), "QUBLK_SEED=\(runSeed), \(name)")
      let bytes = set.reduce(0) { $0 + $1.count }
      #expect(bytes < Self.size, "the whole disk is marked")
    }
    // Reserved clusters of the arena are leaked, as after any crash; no more than that is wrong.
    let check = try run(["qemu-img", "check", "-f", "qcow2", "-r", "leaks", path])
    #expect(check.status == 0 || check.status == 3, "\(check.output)")
    try judge(path, "after the crash")
  }

  @Test func aBackupChainFromTheBitmapIsTheDisk() throws {
    var random = SeededGenerator(seed: runSeed &+ 2)
    let scratch = try Scratch()
    let path = try make(scratch, &random)
    let shadow = try Shadow(scratch.file("shadow.raw"), size: UInt64(Self.size))
    let backup = try Shadow(scratch.file("backup.raw"), size: UInt64(Self.size))
    var source = OperationSource(random.fork(), clusterSize: 65536, diskSize: UInt64(Self.size))
    for turn in 0..<3 {
      let batches = (0..<6).map { _ in source.batch(Int.random(in: 1...8, using: &random)) }
      try withImage(path, &random) { session in
        for batch in batches { try await session.perform(batch, shadow) }
      }
      let increments = try BitmapFile(path).setRanges("usual")
      try openImage(path, readOnly: true) { image in
        for range in increments { try await copy(range, image, backup) }
      }
      // The next increment starts from here.
      try mustRun("qemu-img", "bitmap", "--clear", path, "usual")
      let difference = try Qemu.difference(path, raw: backup.path)
      #expect(difference == nil, "QUBLK_SEED=\(runSeed), turn \(turn)")
    }
  }

  private func copy(_ range: Range<UInt64>, _ image: Image, _ backup: Shadow) async throws {
    let end = min(range.upperBound, image.size)
    let buffer = IOBuffer(count: 65536)
    for start in stride(from: range.lowerBound, to: end, by: 65536) {
      let count = min(65536, Int(end - start))
      let request = BlockRequest(
        .read, offset: GuestOffset(start), length: UInt64(count),
        data: buffer.data.slice(0, count))
      if let errno = await image.serve(request, at: RequestSlot(worker: 0, number: 0)).errno {
        throw errno
      }
      try backup.write(UnsafeRawBufferPointer(start: buffer.base, count: count), at: start)
    }
  }
}

extension GuestOperation {
  fileprivate var changesTheDisk: Bool {
    switch kind {
    case .write, .discard, .writeZeroes: true
    case .read, .flush: false
    }
  }
}
