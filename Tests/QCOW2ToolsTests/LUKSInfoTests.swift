import TestTools
import Testing

@testable import QCOW2Tools

/// `info` and `check` of LUKS headers that nobody can unlock: fields are shown as they stand.
@Suite struct LUKSInfoTests {
  /// An image whose LUKS header is all zeros but for what `edit` writes, at the place it is given.
  private func image(_ edit: (inout ImageEditor, Int) -> Void) throws -> MemoryBytes {
    let options = try CreateOptions(lists: ["encrypt.format=luks"], size: "1M")
    let memory = MemoryBytes([])
    let area = [UInt8](repeating: 0, count: options.encryption?.headerLength ?? 0)
    try ImageCreate.run(options, area, on: memory)
    var editor = ImageEditor(memory.bytes)
    edit(&editor, Int(editor.get(editor.ext(0x0537_be77), 8)))
    return MemoryBytes(editor.bytes)
  }

  private func text(_ bytes: MemoryBytes) throws -> String {
    try ImageInfo(reading: bytes, path: "x", allocatedBytes: 0).report.jsonText
  }

  @Test func aForeignHeaderIsShownAsItStands() throws {
    let bytes = try image { editor, start in
      editor.set(start, 8, 0x4c55_4b53_babe_0009)
      editor.bytes.replaceSubrange(start + 8..<start + 15, with: Array("serpent".utf8))
      editor.bytes.replaceSubrange(start + 40..<start + 55, with: Array("xts-essiv:whirl".utf8))
      editor.bytes.replaceSubrange(start + 72..<start + 104, with: repeatElement(0x78, count: 32))
      editor.set(start + 104, 4, 0xffff_ffff)
      editor.set(start + 108, 4, 64)
      editor.set(start + 164, 4, 7)
      editor.bytes.replaceSubrange(start + 168..<start + 170, with: Array("id".utf8))
      editor.set(start + 208, 4, 0x00ac_71f3)
      editor.set(start + 212, 4, 5)
      editor.set(start + 248, 4, 0xffff_fff0)
      editor.set(start + 252, 4, 1)
      editor.set(start + 256, 4, 0x1234_5678)
    }
    let text = try text(bytes)
    for member in [
      "\"cipher-alg\": \"serpent-256\"", "\"cipher-mode\": \"xts\"", "\"ivgen-alg\": \"essiv\"",
      "\"ivgen-hash-alg\": \"whirl\"", "\"hash-alg\": \"\(String(repeating: "x", count: 32))\"",
      "\"payload-offset\": 2199023255040", "\"master-key-iters\": 7", "\"uuid\": \"id\"",
      "\"iters\": 5", "\"key-offset\": 2199023247360", "\"stripes\": 1",
    ] { #expect(text.contains(member), "\(member) in \(text)") }
    #expect(text.split(separator: "\"active\": true").count == 2)
    #expect(text.split(separator: "\"active\": false").count == 8)
    #expect(try ImageCheck.run(bytes).exitCode == 0)
  }

  @Test func whatIsNoLUKSHeaderIsNamed() throws {
    let bytes = try image { editor, start in editor.set(start, 8, 0x4c55_4b53_babf_0001) }
    let error = #expect(throws: ToolError.self) { try text(bytes) }
    #expect(error?.message.contains("magic number of the encryption header") == true)
    var findings: [CheckFinding] = []
    #expect(try ImageCheck.run(bytes) { findings.append($0) }.exitCode == 2)
    #expect(
      findings.contains {
        if case .encryption(.noMagic(0x4c55_4b53_babf)) = $0 { true } else { false }
      })
  }
}
