import QCOW2Engine
import QCOW2Format
import TestTools
import Testing

/// What the feature bits of a version 3 header say, known and unknown, for readers and writers.
@Suite(.enabled(if: hasQEMU, Qemu.reason))
struct FeatureBitTests {
  /// Sets a bit of one of the three masks, at its byte in the header.
  private func setBit(_ bit: Int, of field: Int, _ path: String) throws {
    let byte = field + 7 - bit / 8
    let old = try contents(path)[byte]
    try patch(path, at: byte, [old | UInt8(1 << (bit % 8))])
  }

  private func mask(_ field: Int, _ path: String) throws -> UInt64 {
    try contents(path)[field..<(field + 8)].reduce(0) { $0 << 8 | UInt64($1) }
  }

  @Test func anImageLeftDirtyByAKilledQemuIsReadOnly() throws {
    let scratch = try Scratch()
    let path = try makeImage(scratch, "compat=1.1,lazy_refcounts=on")
    _ = try run(
      ["qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 1M 64k", "-c", "flush", "-c", "abort", path])
    try #require(try mask(72, path) == 1, "qemu-io did not leave the dirty bit")
    let before = try contents(path)
    let message = openMessage(path, readOnly: false)
    #expect(message?.contains("marked dirty") == true, "\(message ?? "it was opened")")
    #expect(openFailure(path, readOnly: true) == nil)
    #expect(try contents(path) == before)
  }

  @Test func aCorruptImageIsReadOnly() throws {
    let scratch = try Scratch()
    let path = try makeImage(scratch, "compat=1.1")
    try setBit(1, of: 72, path)
    let before = try contents(path)
    let message = openMessage(path, readOnly: false)
    #expect(message?.contains("marked corrupt") == true, "\(message ?? "it was opened")")
    #expect(openFailure(path, readOnly: true) == nil)
    #expect(try contents(path) == before)
  }

  @Test(arguments: [5, 8, 31, 32, 62, 63])
  func anUnknownIncompatibleFeatureIsRefusedByItsNumber(bit: Int) throws {
    let scratch = try Scratch()
    let path = try makeImage(scratch, "compat=1.1")
    try setBit(bit, of: 72, path)
    let before = try contents(path)
    for readOnly in [true, false] {
      let message = openMessage(path, readOnly: readOnly)
      #expect(message?.hasSuffix("features: bit \(bit)") == true, "\(message ?? "it was opened")")
    }
    #expect(try contents(path) == before)
  }

  @Test(arguments: [1, 17, 63])
  func anUnknownCompatibleFeatureIsKept(bit: Int) throws {
    let scratch = try Scratch()
    let path = try makeImage(scratch, "compat=1.1")
    try setBit(bit, of: 80, path)
    for readOnly in [true, false] {
      try openImage(path, readOnly: readOnly) { image in
        if !readOnly { try await image.writePattern(1, at: 0, count: 65536) }
      }
      #expect(try mask(80, path) == 1 << UInt64(bit))
    }
    #expect(try Qemu.complaint(path) == nil)
  }

  @Test(arguments: [0, 1, 2, 40, 63])
  func autoclearBitsGoWhenTheImageIsWrittenAndStayWhenItIsRead(bit: Int) throws {
    let scratch = try Scratch()
    let path = try makeImage(scratch, "compat=1.1")
    try setBit(bit, of: 88, path)
    #expect(openFailure(path, readOnly: true) == nil)
    #expect(try mask(88, path) == 1 << UInt64(bit))
    #expect(openFailure(path, readOnly: false) == nil)
    #expect(try mask(88, path) == 0)
  }

  @Test func aDirtyBitmapOfQemuFollowsOurWrites() throws {
    let scratch = try Scratch()
    let path = try makeImage(scratch, "compat=1.1")
    try mustRun("qemu-img", "bitmap", "--add", path, "changes")
    try #require(try mask(88, path) == 1)
    try openImage(path, readOnly: false) { try await $0.writePattern(9, at: 65536, count: 65536) }
    #expect(try mask(88, path) == 1)
    #expect(try BitmapFile(path).setRanges("changes") == [65536..<131072])
    #expect(try Qemu.complaint(path) == nil)
  }
}
