import QCOW2Tools
import TestTools
import Testing

/// Images made to cost time or memory.
@Suite struct HostileImageTests {
  /// A version 3 header of a disk of `size` bytes and nothing else.
  private func header(
    clusterBits: Int, size: UInt64, l1Entries: UInt64, l1: Int, refcountTable: Int
  ) -> ImageEditor {
    var editor = ImageEditor([UInt8](repeating: 0, count: 512))
    editor.set(0, 8, 0x5146_49fb_0000_0003)
    editor.set(20, 4, UInt64(clusterBits))
    editor.set(24, 8, size)
    editor.set(36, 4, l1Entries)
    editor.set(40, 8, UInt64(l1))
    editor.set(48, 8, UInt64(refcountTable))
    editor.set(56, 4, 1)
    editor.set(96, 4, 4)
    editor.set(100, 4, 104)
    return editor
  }

  /// 2^18 L1 entries with one L2 table, each entry of which has the same cluster: 2^31 references.
  @Test func manyReferencesToOneTableCostNoTime() throws {
    let cluster = 65536
    let entries = 1 << 18
    let l1 = 4 * cluster
    let l2 = l1 + entries * 8
    var editor = header(
      clusterBits: 16, size: 1 << 40, l1Entries: UInt64(entries), l1: l1, refcountTable: cluster)
    editor.bytes += [UInt8](repeating: 0, count: l2 + 2 * cluster - 512)
    for index in 0..<entries { editor.set(l1 + index * 8, 8, UInt64(l2)) }
    for index in 0..<cluster / 8 { editor.set(l2 + index * 8, 8, UInt64(l2 + cluster)) }
    var most: UInt64 = 0
    let result = try ImageCheck.run(MemoryBytes(editor.bytes)) { finding in
      if case .tooManyReferences(_, let references, _) = finding { most = max(most, references) }
    }
    #expect(result.exitCode == 2)
    #expect(most == 1 << 31)
    #expect(result.allocatedClusters == 1 << 31)
  }

  /// References far beyond the end of the file are findings, not memory.
  @Test func farReferencesCostNoMemory() throws {
    let entries = 1 << 14
    var editor = header(
      clusterBits: 16, size: 1 << 40, l1Entries: UInt64(entries), l1: 1 << 17,
      refcountTable: 1 << 16)
    editor.bytes += [UInt8](repeating: 0, count: 1 << 18 - 512)
    for index in 0..<entries {
      editor.set(1 << 17 + index * 8, 8, 1 << 63 | (1 << 55 + UInt64(index) << 16))
    }
    var beyond = 0
    let result = try ImageCheck.run(MemoryBytes(editor.bytes)) { finding in
      if case .beyondEnd(.l2Table, _, _) = finding { beyond += 1 }
    }
    #expect(result.exitCode == 2)
    #expect(beyond == entries)
  }

  /// A sparse file of 2^31 - 1 clusters is checked quickly, one of more clusters is refused.
  @Test func aVeryLongFileCostsLittle() throws {
    let folder = try Folder()
    var editor = header(
      clusterBits: 9, size: 1 << 20, l1Entries: 32, l1: 1024, refcountTable: 512)
    editor.set(96, 4, 6)
    try folder.write(editor.bytes, "long")
    folder.run("truncate -s \((1 << 40) - 512) long")
    let file = try FileBytes(path: "\(folder.path)/long", access: .readOnly)
    #expect(file.length == (1 << 40) - 512)
    #expect(try ImageCheck.run(file).corruptions == 3)
    folder.run("truncate -s \(1 << 40) long")
    #expect(
      throws: ToolError.limit(.clusters, found: 1 << 31, allowed: (1 << 31) - 1)
    ) {
      try ImageCheck.run(FileBytes(path: "\(folder.path)/long", access: .readOnly))
    }
  }
}
