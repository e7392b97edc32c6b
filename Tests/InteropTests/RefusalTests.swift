import QCOW2Engine
import Testing

/// Features that this version cannot serve: a clear error at open, and not a byte changed.
@Suite(.enabled(if: Qemu.isInstalled, Qemu.reason))
struct RefusalTests {
  private func expectRefused(
    _ path: String, _ feature: UnsupportedFeature, _ location: SourceLocation = #_sourceLocation
  ) throws {
    let before = try contents(path)
    for readOnly in [true, false] {
      let message = openMessage(path, readOnly: readOnly)
      #expect(
        message?.contains(feature.rawValue) == true, "\(message ?? "it was opened")",
        sourceLocation: location)
    }
    #expect(try contents(path) == before, "the file has changed", sourceLocation: location)
  }

  @Test func anImageWithABackingFileIsRefused() throws {
    let scratch = try Scratch()
    let base = scratch.file("base.raw")
    try mustRun("qemu-img", "create", "-q", "-f", "raw", base, "4M")
    let path = scratch.file("image.qcow2")
    try mustRun("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", path)
    try expectRefused(path, .backingFile)
  }

  @Test(arguments: ["luks", "aes"])
  func anEncryptedImageIsRefused(format: String) throws {
    let scratch = try Scratch()
    let path = scratch.file("image.qcow2")
    var options = "encrypt.format=\(format),encrypt.key-secret=key"
    if format == "luks" { options += ",encrypt.iter-time=10" }
    try mustRun(
      "qemu-img", "create", "-q", "-f", "qcow2", "--object", "secret,id=key,data=secret", "-o",
      options, path, "4M")
    try expectRefused(path, .encryption)
  }

  @Test func anImageWithAnExternalDataFileIsRefused() throws {
    let scratch = try Scratch()
    let path = try makeImage(scratch, "data_file=\(scratch.file("data.raw"))")
    try expectRefused(path, .externalDataFile)
  }

  @Test func anImageWithExtendedL2EntriesIsRefused() throws {
    let scratch = try Scratch()
    try expectRefused(try makeImage(scratch, "extended_l2=on"), .extendedL2)
  }

  @Test func aZstdImageIsRefused() throws {
    let scratch = try Scratch()
    try expectRefused(try makeImage(scratch, "compression_type=zstd"), .compression)
  }

  @Test(arguments: [512, 4096, 65536, 2 << 20])
  func anImageWithACompressedClusterIsRefused(clusterSize: Int) throws {
    let scratch = try Scratch()
    let raw = scratch.file("data.raw")
    try mustRun("qemu-img", "create", "-q", "-f", "raw", raw, "6M")
    try patch(raw, at: 5 << 20, [UInt8](repeating: 7, count: 1 << 20))
    let path = scratch.file("image.qcow2")
    try mustRun(
      "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o",
      "cluster_size=\(clusterSize)", raw, path)
    try expectRefused(path, .compression)
  }
}
