import QCOW2Engine
import QCOW2Format
import TestTools
import Testing

/// The bytes of the header that our engine must not touch.
@Suite(.enabled(if: hasQEMU, Qemu.reason))
struct HeaderBytesTests {
  /// The fields that may change: refcount table's place and size; version 3: autoclear bits.
  private func withoutMutableFields(_ header: ArraySlice<UInt8>, version: Int) -> [UInt8] {
    var header = Array(header)
    for byte in 48..<60 { header[byte] = 0 }
    if version == 3 { for byte in 88..<96 { header[byte] = 0 } }
    return header
  }

  /// Writes much of the disk, so that the refcount table grows where it is small.
  private func writeMuch(_ path: String) throws {
    try openImage(path, readOnly: false) { image in
      for index in 0..<24 {
        try await image.writePattern(UInt8(index + 1), at: UInt64(index) << 18, count: 1 << 17)
      }
    }
  }

  @Test(arguments: [512, 4096, 65536])
  func aVersion2HeaderKeepsItsBytes(clusterSize: Int) throws {
    let scratch = try Scratch()
    let path = try makeImage(scratch, "compat=0.10,cluster_size=\(clusterSize)")
    // What lies where version 3 has its features means nothing in version 2: here, after the end
    // of the header extensions, it is garbage.
    try patch(path, at: 80, [UInt8](repeating: 0xff, count: 40))
    let before = try contents(path)[0..<clusterSize]
    try writeMuch(path)
    let after = try contents(path)[0..<clusterSize]
    #expect(
      withoutMutableFields(after, version: 2) == withoutMutableFields(before, version: 2))
    #expect(try Qemu.complaint(path) == nil)
    #expect(try mustRun("qemu-img", "info", path).contains("compat: 0.10"))
  }

  @Test(arguments: [512, 65536])
  func aVersion3HeaderKeepsAllItHasNotToChange(clusterSize: Int) throws {
    let scratch = try Scratch()
    let path = try makeImage(scratch, "refcount_bits=64,cluster_size=\(clusterSize)")
    let before = try contents(path)[0..<clusterSize]
    try writeMuch(path)
    let after = try contents(path)[0..<clusterSize]
    #expect(
      withoutMutableFields(after, version: 3) == withoutMutableFields(before, version: 3))
    if clusterSize == 512 {
      #expect(after[48..<60] != before[48..<60], "the refcount table was meant to grow")
    }
    #expect(try Qemu.complaint(path) == nil)
  }

  @Test func anUnknownHeaderExtensionSurvives() throws {
    let scratch = try Scratch()
    let path = try makeImage(scratch, "compat=1.1")
    let header = try contents(path)[0..<65536]
    // Extensions follow the header; type 0 ends them.
    var position = Int(header[103]) | Int(header[102]) << 8
    while header[position..<(position + 4)].contains(where: { $0 != 0 }) {
      let length = header[(position + 4)..<(position + 8)].reduce(0) { $0 << 8 | Int($1) }
      position += 8 + (length + 7) / 8 * 8
    }
    let added: [UInt8] = [0x12, 0x34, 0x56, 0x78, 0, 0, 0, 11] + Array("qublk tests".utf8)
    try patch(path, at: position, added + [UInt8](repeating: 0, count: 32))
    let before = try contents(path)[0..<65536]
    try writeMuch(path)
    #expect(try contents(path)[0..<65536] == before)
    #expect(try Qemu.complaint(path) == nil)
  }

  @Test func aLargeImageOfVersion3MayHaveALongHeader() throws {
    let scratch = try Scratch()
    let path = try makeImage(scratch, "compat=1.1")
    // header_length 112 → 104: the form that QEMU before 5.1 wrote. The byte at 104 is then not
    // a compression type but the first extension.
    var header = try contents(path)
    let extensions = Array(header[112..<4096])
    header.replaceSubrange(104..<(104 + extensions.count), with: extensions)
    header[103] = 104
    try patch(path, at: 0, Array(header[0..<4096]))
    try writeMuch(path)
    #expect(try Qemu.complaint(path) == nil)
  }
}
