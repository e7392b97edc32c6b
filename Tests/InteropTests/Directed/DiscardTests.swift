import BlockCore
import QCOW2Engine
import TestTools
import Testing

/// Discards and zeroing where something else could be hurt [DISC-8, DISC-9, DISC-10, DISC-13].
@Suite(.enabled(if: hasQEMU, Qemu.reason))
struct DiscardTests {
  @Test func zeroingThatKeepsTheAllocationKeepsThePlaceAndTheNextWriteUsesIt() throws {
    var random = SeededGenerator(seed: runSeed)
    let image = try DirectedImage("cluster_size=64k", size: 1 << 20, in: try Scratch())
    try image.disk.io(["write -P 3 0 256k"])
    let before = try place(image, 64 << 10)
    #expect(before != nil)
    let shadow = try image.shadow()
    try image.perform([.zero(64 << 10, 64 << 10, keeps: true)], shadow, &random)
    try image.judge(shadow)
    try image.perform([.write((64 << 10) + 4096, 8192)], shadow, &random)
    try image.judge(shadow)
    #expect(try place(image, 64 << 10) == before)
    try image.perform([.zero(64 << 10, 64 << 10)], shadow, &random)
    try image.judge(shadow)
    #expect(try place(image, 64 << 10) == nil)
  }

  /// The host offset of the guest's data at `offset`; nil if there is none.
  private func place(_ image: DirectedImage, _ offset: UInt64) throws -> UInt64? {
    let map = try image.disk.image("map", "--output=human")
    for line in map.split(separator: "\n").dropFirst() {
      let numbers = line.split(separator: " ").prefix(3).compactMap {
        UInt64($0.dropFirst(2), radix: 16) ?? UInt64($0)
      }
      if numbers.count == 3 && numbers[0] <= offset && offset < numbers[0] + numbers[1] {
        return numbers[2] + offset - numbers[0]
      }
    }
    return nil
  }

  @Test(arguments: ["", ",extended_l2=on", ",compat=0.10"])
  func aSnapshotKeepsWhatIsDiscarded(_ options: String) throws {
    var random = SeededGenerator(seed: runSeed)
    let size: UInt64 = (2 << 20) + 512
    let image = try DirectedImage("cluster_size=16k" + options, size: size, in: try Scratch())
    try image.disk.io(["write -c -P 3 0 64k", "write -P 4 100k 300k", "write -P 5 1M 200k"])
    let before = try image.shadow("before.raw")
    try image.disk.image("snapshot", "-c", "before")
    let shadow = try image.shadow()
    try image.perform([.discard(0, size)], shadow, &random)
    try image.judge(shadow)
    try image.disk.image("snapshot", "-a", "before")
    try image.judge(before)
  }

  @Test(arguments: ["zlib", "zstd"])
  func aDiscardedCompressedClusterDoesNotTakeItsNeighboursWithIt(_ kind: String) throws {
    var random = SeededGenerator(seed: runSeed)
    let image = try DirectedImage(
      "cluster_size=64k,compression_type=\(kind)", size: 1 << 20, in: try Scratch())
    // A dozen of these share a host cluster.
    try image.disk.io((0..<12).map { "write -c -P \($0 + 1) \($0 * 64)k 64k" })
    let shadow = try image.shadow()
    try image.perform([.discard(5 * 65536, 65536)], shadow, &random) { $0.discardsToHost = true }
    try image.judge(shadow)
    try image.perform(
      [.discard(0, 65536), .write(2 * 65536, 65536), .zero(11 * 65536, 65536)], shadow, &random)
    try image.judge(shadow)
  }
}
