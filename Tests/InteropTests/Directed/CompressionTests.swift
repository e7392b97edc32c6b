import BlockCore
import DiskImages
import HostFiles
import QCOW2Engine
import Synchronization
import TestTools
import Testing
import Uring

/// Compressed clusters, read and written [COMP-1 … COMP-5, COMP-9].
@Suite(.enabled(if: hasQEMU, Qemu.reason))
struct CompressionTests {
  @Test(arguments: 9...21, ["zlib", "zstd"])
  func weReadWhatQemuCompressesInClustersOfEverySize(_ bits: Int, _ kind: String) throws {
    var random = SeededGenerator(seed: runSeed)
    let scratch = try Scratch()
    let size: UInt64 = bits < 14 ? 300 << 10 : (5 << 20) + 512
    let source = try Shadow(scratch.file("source.raw"), size: size)
    for index in 0..<6 {
      let start = UInt64(index) * size / 6 & ~511
      let operation = GuestOperation.write(start, size / 8 & ~511, stamp: UInt64(7 + index))
      try source.apply(operation, zeroed: 0..<0)
    }
    let path = scratch.file("image.qcow2")
    try mustRunQEMU([
      "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o",
      "cluster_size=\(1 << bits),compression_type=\(kind)", source.path, path,
    ])
    let disk = MatrixDisk(path: path, ciphers: [.plain])
    try withImage(disk.options(readOnly: true), &random) { try await $0.verify(source) }
    // The compressed data ends in the middle of a sector, at the end of the file.
    try withImage(disk.options(readOnly: false), &random) { session in
      try await session.perform(.write(size / 2 & ~511, 512), slot: 0, source)
      try await session.perform(.write(size - 1024, 1024), slot: 0, source)
      try await session.verify(source)
    }
    try disk.requireClean("the image")
    try withImage(disk.options(readOnly: true), &random) { try await $0.verify(source) }
  }

  @Test(arguments: ["zlib", "zstd"])
  func damagedCompressedDataIsAnErrorNotGarbage(_ kind: String) throws {
    let image = try DirectedImage(
      "cluster_size=64k,compression_type=\(kind)", size: 1 << 20, in: try Scratch())
    try image.disk.io(["write -c -P 3 0 64k"])
    let bytes = try contents(image.disk.path)
    // The first L2 table, then the first entry's place.
    let l1 = Int(number(bytes, 40))
    let l2 = Int(number(bytes, l1) & 0x00ff_ffff_ffff_fe00)
    let entry = number(bytes, l2)
    #expect(entry >> 62 & 1 == 1)
    let place = Int(entry & (1 << 54 - 1))
    try patch(image.disk.path, at: place, [UInt8](repeating: 0xff, count: 64))
    let options = image.disk.options(readOnly: true)
    try runBlocking { () async throws(any Error) in
      let disk = try await DiskImage.open(options)
      let buffer = IOBuffer(count: 512)
      let result = await disk.engine.serve(
        BlockRequest(.read, offset: GuestOffset(1024), length: 512, data: buffer.data),
        at: RequestSlot(worker: 0, number: 0))
      #expect(result.errno == .io)
      withExtendedLifetime(buffer) {}
      try await disk.close()
    }
  }

  private func number(_ bytes: [UInt8], _ at: Int) -> UInt64 {
    bytes[at..<(at + 8)].reduce(0) { $0 << 8 | UInt64($1) }
  }

  @Test func writingLeavesTheHeaderAsItIs() throws {
    var random = SeededGenerator(seed: runSeed)
    let image = try DirectedImage(
      "cluster_size=4k,compression_type=zstd", size: 4 << 20, in: try Scratch())
    try image.disk.io(["write -c -P 3 0 64k"])
    let before = try contents(image.disk.path).prefix(4096)
    let shadow = try image.shadow()
    try image.perform([.write(512, 512), .write(1 << 20, 200 << 10)], shadow, &random) {
      $0.compressesWrites = true
    }
    try image.judge(shadow)
    #expect(try contents(image.disk.path).prefix(4096) == before)
  }

  struct Packing: Sendable, CustomTestStringConvertible {
    let options: String
    let mode: HostFileMode
    var testDescription: String { "\(options) \(mode)" }

    static let all: [Packing] = [
      "cluster_size=64k", "cluster_size=64k,compression_type=zstd",
      "cluster_size=512", "cluster_size=512,refcount_bits=1",
      "cluster_size=64k,refcount_bits=1", "cluster_size=4k,refcount_bits=2,compression_type=zstd",
      "cluster_size=2M", "cluster_size=16k,extended_l2=on", "cluster_size=64k,compat=0.10",
    ].flatMap { [Packing(options: $0, mode: .direct), Packing(options: $0, mode: .buffered)] }
  }

  @Test(arguments: Packing.all)
  func fourWorkersPackCompressedClustersThatQemuReads(_ packing: Packing) throws {
    // A file system with direct I/O, where there is one.
    let scratch = try Scratch(parent: packing.mode == .direct ? "/var/tmp" : nil)
    let size: UInt64 = packing.options.contains("=512") ? 2 << 20 : (12 << 20) + 1024
    let image = try DirectedImage(packing.options, size: size, in: scratch)
    let shadow = try image.shadow()
    var options = image.disk.options(readOnly: false)
    options.mode = packing.mode
    options.engine.compressesWrites = true
    options.engine.workers = 4
    let disk = try runBlocking { [options] () async throws(any Error) in
      try await DiskImage.open(options)
    }
    let failures = Mutex<[String]>([])
    let threads = try (0..<4).map { worker in
      try WorkerThread(name: "pack-\(worker)", stackBytes: 8 << 20) {
        do { try self.write(disk.engine, shadow, worker) } catch {
          failures.withLock { $0.append("worker \(worker): \(error)") }
        }
      }
    }
    for thread in threads { thread.join() }
    try runBlocking { () async throws(any Error) in try await disk.close() }
    #expect(failures.withLock { $0 } == [])
    try image.judge(shadow)
    var random = SeededGenerator(seed: runSeed)
    try withImage(image.disk.options(readOnly: true), &random) { try await $0.verify(shadow) }
  }

  /// Every fourth 64 KiB of the disk, then some of that again, whole and in part.
  private func write(_ image: Image, _ shadow: Shadow, _ worker: Int) throws {
    var random = SeededGenerator(seed: runSeed ^ UInt64(worker))
    try runBlocking { () async throws(any Error) in
      for round in 0..<2 {
        for index in 0..<(shadow.size / 65536) where Int(index) % 4 == worker {
          if round == 1 && random.chance(60) { continue }
          let start = index * 65536
          var length: UInt64 = 65536
          if round == 1 && random.chance(50) { length = 3072 }
          let operation = GuestOperation.write(start, length, stamp: random.next() >> 40)
          let buffer = IOBuffer(count: Int(length))
          operation.fill(buffer)
          let result = await image.serve(
            BlockRequest(
              .write, offset: GuestOffset(start), length: length, data: buffer.data),
            at: RequestSlot(worker: worker, number: 0))
          if let errno = result.errno { throw errno }
          try shadow.apply(operation, zeroed: 0..<0)
        }
        await image.maintain()
      }
    }
  }
}
