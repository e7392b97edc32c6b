import BlockCore
import TestTools
import Testing

/// An encrypted image whose data file is called raw, which qemu-img makes, is raw in name only.
@Suite(.enabled(if: hasQEMU, Qemu.reason))
struct EncryptedDataFileTests {
  @Test func zeroingAnEncryptedDataFileReadsAsZerosAndKeepsTheNameRaw() throws {
    var random = SeededGenerator(seed: runSeed)
    let scratch = try Scratch()
    let data = scratch.file("image.data")
    var image = try DirectedImage(
      "cluster_size=64k,data_file=\(data),data_file_raw=on", size: 1 << 20, cipher: .aes,
      in: scratch)
    image.disk.dataFile = data
    try image.disk.io(["write -P 3 0 700k"])
    let features = try contents(image.disk.path)[72..<96]
    let shadow = try image.shadow()
    try image.perform(
      [.zero(64 << 10, 64 << 10), .zero(200_192, 3072), .discard(256 << 10, 128 << 10)], shadow,
      &random)
    try image.judge(shadow)
    #expect(try contents(image.disk.path)[72..<96] == features)
  }
}
