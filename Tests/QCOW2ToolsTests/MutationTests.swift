import BlockCore
import QCOW2Tools
import TestTools
import Testing

/// Images with random damage: nothing traps, nothing runs for ever, nothing is written.
@Suite(.enabled(if: hasQEMU, "needs qemu-img and qemu-io")) struct MutationTests {
  private static let seed = testSeed("mutations", fallback: .random(in: 0...UInt64.max))
  private static let rounds = 1500
  private static let comparisons = testSetting("QUBLK_COMPARISONS", default: 40)

  /// Values that tables and fields go wrong with.
  private static let values: [UInt64] = [
    0, 1, 2, 511, 512, 4096, 1 << 31, UInt64(UInt32.max), 1 << 32, 1 << 40, 1 << 55, 1 << 56,
    1 << 62, 1 << 63, UInt64.max, UInt64.max - 511, 0x00ff_ffff_ffff_f000, 0x7fff_ffff_ffff_f000,
  ]

  /// Clusters that hold metadata, found by what the check reads: all that are not all alike.
  private func targets(_ editor: ImageEditor) -> [Int] {
    let size = editor.clusterSize
    return stride(from: 0, to: editor.bytes.count, by: size).filter { start in
      let cluster = editor.bytes[start..<min(start + size, editor.bytes.count)]
      return cluster.contains { $0 != cluster[start] }
    }
  }

  private func mutate(
    _ editor: inout ImageEditor, _ targets: [Int], _ generator: inout SeededGenerator
  ) {
    for _ in 0..<Int.random(in: 1...4, using: &generator) {
      let cluster = targets.randomElement(using: &generator) ?? 0
      let isHeader = Int.random(in: 0..<3, using: &generator) == 0
      let reach = isHeader ? 112 : 1024
      let offset = (isHeader ? 0 : cluster) + Int.random(in: 0..<reach / 8, using: &generator) * 8
      guard offset + 8 <= editor.bytes.count else { continue }
      switch Int.random(in: 0..<5, using: &generator) {
      case 0: editor.bytes[offset + Int.random(in: 0..<8, using: &generator)] ^= 1 << 3
      case 1: editor.set(offset, 8, Self.values.randomElement(using: &generator) ?? 0)
      case 2: editor.set(offset + 4, 4, Self.values.randomElement(using: &generator) ?? 0)
      case 3: editor.set(offset, 8, UInt64.random(in: 0...UInt64.max, using: &generator))
      default:
        let host = UInt64(targets.randomElement(using: &generator) ?? 0)
        editor.change(offset) { $0 & 1 << 63 | host }
      }
    }
    if Int.random(in: 0..<40, using: &generator) == 0 {
      editor.bytes.removeLast(Int.random(in: 0..<editor.bytes.count, using: &generator))
    }
  }

  private func verdict(_ memory: MemoryBytes) -> (Int32, [CheckFinding], String) {
    var findings: [CheckFinding] = []
    do throws(ToolError) {
      let result = try ImageCheck.run(memory) { findings.append($0) }
      var again: [CheckFinding] = []
      let same = try ImageCheck.run(memory, threads: .concurrent) { again.append($0) }
      #expect(same == result && again == findings, "three threads find something else")
      for finding in findings.prefix(50) { #expect(!finding.message.isEmpty) }
      return (result.exitCode, findings, "")
    } catch {
      #expect(!error.message.isEmpty)
      return (1, findings, error.message)
    }
  }

  @Test(arguments: BrokenImage.Base.allCases)
  func randomDamageNeverTraps(base: BrokenImage.Base) throws {
    let folder = try Folder()
    folder.run(base.script)
    let sound = ImageEditor(folder.bytes(base.rawValue))
    let targets = targets(sound)
    var generator = SeededGenerator(seed: Self.seed)
    for round in 0..<Self.rounds {
      var editor = sound
      mutate(&editor, targets, &generator)
      let memory = MemoryBytes(editor.bytes)
      let (ours, findings, error) = verdict(memory)
      if let info = try? ImageInfo(reading: memory, path: "x", allocatedBytes: 0) {
        #expect(!info.report.jsonText.isEmpty && !info.report.humanText.isEmpty)
      }
      #expect(memory.bytes == editor.bytes)
      guard round < Self.comparisons else { continue }
      try folder.write(editor.bytes, "broken")
      let theirs = folder.run("timeout 60 qemu-img check -f qcow2 --output=json broken")
      let agree = ours == theirs.status || Self.isDocumented(findings, theirs)
      let what = "\(base), seed \(Self.seed), round \(round)"
      #expect(agree, "\(what): \(ours) \(error) \(findings)\n\(theirs)")
    }
  }

  /// Where we say more than QEMU: see ``ImageCheck``.
  private static func isDocumented(_ findings: [CheckFinding], _ theirs: Shell.Answer) -> Bool {
    let opensNothing = theirs.err.contains("Could not open")
    let says = theirs.status
    // We never look for the data file.
    if ["'data-file'", "'broken': Could not open '", "'file'"].contains(where: theirs.err.contains)
    {
      return true
    }
    return findings.contains { finding in
      switch finding {
      case .bitmaps, .encryption: says == 1 && opensNothing
      case .reservedBits(.bitmapTable, _), .unaligned(.bitmapData, _, _): says == 1 && opensNothing
      case .beyondEnd(_, let offset, _): says == 1 && offset.bytes >> 62 != 0
      case .bitmapsMissing, .overlap, .dataFileOffset, .l2TableTwice: says == 0 || says == 3
      // QEMU reads what a file lacks as zeros.
      case .unreadable, .unwritable: says == 0 || says == 3
      case .rawDataMissing: says == 1 && opensNothing
      case .reservedBits(.l2, let raw): raw & 1 == 1 && (says == 0 || says == 3)
      default: false
      }
    }
  }
}
