import QCOW2Tools
import TestTools
import Testing

@Suite(.enabled(if: hasQEMU, "needs qemu-img and qemu-io")) struct BrokenImageTests {
  @Test func theVerdictIsQEMUs() throws {
    let folder = try Folder()
    var sound: [BrokenImage.Base: [UInt8]] = [:]
    for base in BrokenImage.Base.allCases {
      folder.run(base.script)
      sound[base] = folder.bytes(base.rawValue)
    }
    for broken in brokenImages {
      var editor = ImageEditor(try #require(sound[broken.image]))
      broken.edit(&editor)
      try folder.write(editor.bytes, "broken")
      let theirs = folder.run("qemu-img check -f qcow2 --output=json broken")
      let (ours, findings) = verdict(editor.bytes)
      switch broken.verdict {
      case .same: #expect(ours == theirs.status, "\(broken): \(findings)\n\(theirs.err)")
      case .ours(let code, let expected, _):
        #expect(ours == code, "\(broken): \(findings)")
        #expect(theirs.status == expected, "\(broken): \(theirs.err)")
      }
    }
  }

  private func verdict(_ bytes: [UInt8]) -> (Int32, [String]) {
    var findings: [String] = []
    let memory = MemoryBytes(bytes)
    do throws(ToolError) {
      let result = try ImageCheck.run(memory) { findings.append($0.message) }
      return (result.exitCode, findings)
    } catch {
      return (1, [error.message])
    }
  }
}
