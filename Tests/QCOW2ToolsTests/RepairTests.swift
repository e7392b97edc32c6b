import BlockCore
import Glibc
import QCOW2Tools
import TestTools
import Testing

/// Keeps what was synced apart from what was not, and fails on demand.
final class CrashBytes: WritableImageBytes {
  private(set) var current: [UInt8]
  /// What is durable.
  private(set) var durable: [UInt8]
  /// Without data: the file is cut there.
  private var pending: [(offset: Int, data: [UInt8]?)] = []
  private(set) var steps = 0
  private let limit: Int

  /// The operation with the number `limit` fails, and all after it.
  init(_ bytes: [UInt8], limit: Int = Int.max) {
    current = bytes
    durable = bytes
    self.limit = limit
  }

  var length: UInt64 { UInt64(current.count) }
  var isBlockDevice: Bool { false }

  private func step() throws(ToolError) {
    steps += 1
    if steps >= limit { throw .host(.sync, errno: .io) }
  }

  func read(into buffer: UnsafeMutableRawBufferPointer, at offset: HostOffset) throws(ToolError) {
    let memory = MemoryBytes(current)
    try memory.read(into: buffer, at: offset)
  }

  func write(_ buffer: UnsafeRawBufferPointer, at offset: HostOffset) throws(ToolError) {
    try step()
    let write = (offset: Int(offset.bytes), data: Array(buffer))
    Self.apply(write, &current)
    pending.append((write.offset, write.data))
  }

  private static func apply(_ write: (offset: Int, data: [UInt8]), _ bytes: inout [UInt8]) {
    let end = write.offset + write.data.count
    if bytes.count < end { bytes += [UInt8](repeating: 0, count: end - bytes.count) }
    bytes.replaceSubrange(write.offset..<end, with: write.data)
  }

  func setLength(_ length: UInt64) throws(ToolError) {
    try step()
    current += [UInt8](repeating: 0, count: max(0, Int(length) - current.count))
    if Int(length) < current.count {
      current.removeLast(current.count - Int(length))
      pending.append((Int(length), nil))
    }
  }
  func allocate(_ length: UInt64) throws(ToolError) {}
  func sync() throws(ToolError) {
    try step()
    durable = current
    pending = []
  }

  /// A state that a power cut may leave: any sectors of what is not durable.
  func cut(_ random: inout SeededGenerator) -> [UInt8] {
    var state = durable
    for write in pending {
      guard let data = write.data else {
        if random.next() % 2 == 0 { state.removeLast(max(0, state.count - write.offset)) }
        continue
      }
      for start in stride(from: 0, to: data.count, by: 512) where random.next() % 2 == 0 {
        let end = min(start + 512, data.count)
        Self.apply((write.offset + start, Array(data[start..<end])), &state)
      }
    }
    return state
  }
}

@Suite(.enabled(if: hasQEMU, "needs qemu-img and qemu-io")) struct RepairTests {
  @Test(arguments: [Ruin.stale, .noise, .flags, .noBlocks, .badBlocks])
  func aCrashAtAnyStepOfARebuildLosesNothing(ruin: Ruin) throws {
    let seed = testSeed("rebuild crash \(ruin)", fallback: .random(in: 0...UInt64.max))
    var random = SeededGenerator(seed: seed)
    let folder = try Folder()
    for base in [BrokenImage.Base.plain, .compressed, .bitmaps, .extended, .narrow] {
      folder.run(base.script)
      let sound = folder.bytes(base.rawValue)
      let view = GuestView(sound)
      var image = ImageEditor(sound)
      ruin.apply(to: &image, seed: seed)
      let whole = CrashBytes(image.bytes)
      _ = try RefcountRebuild.run(whole)
      for limit in 1...whole.steps {
        let crashing = CrashBytes(image.bytes, limit: limit)
        #expect(throws: ToolError.self) { _ = try RefcountRebuild.run(crashing) }
        let state = crashing.cut(&random)
        let isDirty = ImageEditor(state).get(72, 8) & 1 == 1
        #expect(isDirty || limit >= whole.steps - 1, "\(base) \(limit): dirty until the end")
        let again = MemoryBytes(state)
        if isDirty { _ = try RefcountRebuild.run(again) }
        var findings: [String] = []
        let result = try ImageCheck.run(again) { findings.append($0.message) }
        #expect(result.exitCode == 0, "\(ruin) \(base), cut at \(limit): \(findings.prefix(3))")
        #expect(GuestView(again.bytes) == view, "\(ruin) \(base), cut at \(limit)")
      }
    }
  }

  @Test func theHandbrokenImagesNeverGetWorse() throws {
    let folder = try Folder()
    var sound: [BrokenImage.Base: [UInt8]] = [:]
    for base in BrokenImage.Base.allCases {
      folder.run(base.script)
      sound[base] = folder.bytes(base.rawValue)
    }
    for broken in brokenImages {
      var editor = ImageEditor(try #require(sound[broken.image]))
      broken.edit(&editor)
      for mode in [RepairMode.leaks, .all] { try repair(editor.bytes, mode, "\(broken)") }
    }
  }

  private func repair(_ bytes: [UInt8], _ mode: RepairMode, _ name: String) throws {
    let image = MemoryBytes(bytes)
    guard let before = try? ImageCheck.run(image) else {
      #expect(throws: ToolError.self) { _ = try RefcountRebuild.repair(image, mode) }
      #expect(image.bytes == bytes, "\(name): unreadable, and changed")
      return
    }
    var findings: [CheckFinding] = []
    _ = try ImageCheck.run(image) { findings.append($0) }
    let changes = try RefcountRebuild.repair(image, mode)
    let after = try ImageCheck.run(image)
    #expect(after.corruptions <= before.corruptions, "\(name) \(mode): \(changes)")
    #expect(after.checkErrors <= before.checkErrors, "\(name) \(mode)")
    // A writer clears unknown autoclear bits whatever else it does.
    if changes.isEmpty && !changes.isNowClean && bytes[88] == 0 {
      #expect(image.bytes == bytes || image.length == UInt64(bytes.count), "\(name) \(mode)")
    }
    if mode == .all && findings.allSatisfy(\.isRefcountDamage) {
      #expect(after.exitCode == 0, "\(name): \(findings.map(\.message))")
    }
  }

  @Test func anEmptyPetabyteImageGrowsByAFewClusters() throws {
    let folder = try Folder()
    folder.run("qemu-img create -q -f qcow2 -o cluster_size=2M x 1P")
    var image = ImageEditor(folder.bytes("x"))
    Ruin.noBlocks.apply(to: &image, seed: 1)
    let bytes = MemoryBytes(image.bytes)
    let changes = try RefcountRebuild.run(bytes)
    #expect(changes.hasNewStructures)
    #expect(bytes.length <= UInt64(image.bytes.count) + 4 * 2 << 20)
  }

  @Test func checkRepairSaysWhatQEMUSays() throws {
    let folder = try Folder()
    folder.run(BrokenImage.Base.plain.script)
    let sound = folder.bytes("plain")
    for (leaks, errors) in [(2, 0), (0, 0), (5, 0)] {
      var image = ImageEditor(sound)
      for index in 0..<leaks { image.setRefcount(image.bytes.count + index * 4096 - 8 * 4096, 9) }
      try folder.write(image.bytes, "x")
      let bytes = MemoryBytes(image.bytes)
      let changes = try RefcountRebuild.repair(bytes, .leaks)
      var result = try ImageCheck.run(bytes)
      result.note(changes)
      let text = (changes.isEmpty ? "" : changes.humanText) + result.humanText
      folder.run("cp x y")
      let theirs = folder.run("qemu-img check -r leaks x")
      #expect(text == theirs.out, "\(leaks) \(errors)")
      #expect(result.exitCode == theirs.status)
      let json = folder.run("qemu-img check -r leaks --output=json y")
      #expect(result.jsonText(path: "y") == json.out)
    }
  }
}
