import QCOW2Engine
import TestTools
import Testing

/// Images opened without something that they need: a clear error, and not a byte changed.
@Suite(.enabled(if: hasQEMU, Qemu.reason))
struct RefusalTests {
  private func expectRefused(
    _ path: String, _ feature: MissingSource, _ location: SourceLocation = #_sourceLocation
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
    // QEMU gives up now and then where the clock is too coarse to time the key derivation.
    for _ in 0..<40 {
      let made = try run([
        "qemu-img", "create", "-q", "-f", "qcow2", "--object", "secret,id=key,data=secret", "-o",
        options, path, "4M",
      ])
      if made.succeeded { break }
    }
    try expectRefused(path, .cipher)
  }

  @Test func anImageWithAnExternalDataFileIsRefused() throws {
    let scratch = try Scratch()
    let path = try makeImage(scratch, "data_file=\(scratch.file("data.raw"))")
    try expectRefused(path, .dataFile)
  }
}
