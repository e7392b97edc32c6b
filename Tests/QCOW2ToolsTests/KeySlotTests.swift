import BlockCore
import QCOW2Codec
import QCOW2Format
import QCOW2Tools
import TestTools
import Testing

/// Key slots: a crash takes no passphrase away but the one that is to go [ENC-8].
@Suite(.enabled(if: hasQEMU, "needs qemu-img and qemu-io")) struct KeySlotTests {
  private static let image: [UInt8] = {
    guard let folder = try? Folder() else { return [] }
    // On a busy machine qemu-img may find too few iterations in the time, and refuse.
    for time in [10, 100, 500, 2000] {
      folder.run(
        "rm -f x; qemu-img create -q -f qcow2 --object secret,id=s,data=old "
          + "-o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=\(time) x 1M || rm -f x")
      if case let bytes = folder.bytes("x"), !bytes.isEmpty { return bytes }
    }
    return []
  }()

  private func secret(_ text: String) throws -> Secret {
    let bytes = Array(text.utf8)
    return try Secret(count: bytes.count) { (target) throws(LUKSError) in
      target.copyBytes(from: bytes)
    }
  }

  private func opens(_ bytes: [UInt8], _ text: String) throws -> [Int] {
    let file = MemoryBytes(bytes)
    let pointer = try #require(try HeaderCluster(reading: file).encryptionHeader)
    let area = try file.block(at: pointer.offset, count: Int(pointer.length))
    let slots = try LUKSKeySlots(area: area.withBytes { $0.copy(0..<$0.count) })
    return try slots.open(secret(text))?.slots ?? []
  }

  private func change(
    _ action: KeySlotChange.Action, isForced: Bool = false
  ) throws -> KeySlotChange {
    KeySlotChange(action, unlocking: try secret("old"), isForced: isForced)
  }

  private func run(_ change: KeySlotChange, on bytes: [UInt8]) throws -> [UInt8] {
    let file = MemoryBytes(bytes)
    try change.run(file)
    return file.bytes
  }

  /// Carries a change out, ending at each step, and gives `body` what a power cut may leave.
  private func cutEverywhere(
    _ change: KeySlotChange, on bytes: [UInt8], _ body: ([UInt8], String) throws -> Void
  ) throws {
    let seed = testSeed("key slot crash", fallback: .random(in: 0...UInt64.max))
    var random = SeededGenerator(seed: seed)
    let whole = CrashBytes(bytes)
    try change.run(whole)
    try body(whole.durable, "whole")
    for limit in 1...whole.steps {
      let crashing = CrashBytes(bytes, limit: limit)
      #expect(throws: ToolError.self) { try change.run(crashing) }
      try body(crashing.cut(&random), "cut at \(limit) of \(whole.steps), seed \(seed)")
    }
  }

  @Test func anAddedPassphraseIsThereOrNot() throws {
    try #require(!Self.image.isEmpty)
    let add = try change(.add(try secret("new"), slot: nil, milliseconds: 0))
    try cutEverywhere(add, on: Self.image) { bytes, place in
      #expect(try opens(bytes, "old") == [0], "\(place)")
      let new = try opens(bytes, "new")
      #expect(new == [1] || place != "whole" && new.isEmpty, "\(place)")
    }
  }

  @Test func anErasedSlotCanBeErasedAgain() throws {
    let add = try change(.add(try secret("new"), slot: 6, milliseconds: 0))
    let two = try run(add, on: Self.image)
    let erase = try change(.erase(slot: nil, try secret("new")))
    try cutEverywhere(erase, on: two) { bytes, place in
      #expect(try opens(bytes, "old") == [0], "\(place)")
      let again = try run(change(.erase(slot: 6, nil), isForced: true), on: bytes)
      #expect(try opens(again, "new") == [], "\(place)")
      #expect(try opens(again, "old") == [0], "\(place)")
    }
  }

  @Test func theOnlySlotIsOverwrittenByWayOfAnother() throws {
    let add = try change(.add(try secret("new"), slot: 0, milliseconds: 0), isForced: true)
    try cutEverywhere(add, on: Self.image) { bytes, place in
      let (old, new) = (try opens(bytes, "old"), try opens(bytes, "new"))
      #expect(!old.isEmpty || !new.isEmpty, "nothing opens the image, \(place)")
      if place == "whole" {
        #expect(old == [])
        #expect(new == [0])
      }
    }
  }

  @Test func whatIsRefusedChangesNothing() throws {
    let (new, bad) = (try secret("new"), try secret("bad"))
    for change in [
      try change(.erase(slot: 0, nil)), try change(.erase(slot: nil, try secret("old"))),
      try change(.erase(slot: 8, nil)), try change(.erase(slot: 3, nil)),
      try change(.erase(slot: nil, bad)), try change(.add(new, slot: 0, milliseconds: 0)),
      KeySlotChange(.add(new, slot: nil, milliseconds: 0)),
      KeySlotChange(.add(new, slot: nil, milliseconds: 0), unlocking: bad),
    ] {
      let file = MemoryBytes(Self.image)
      #expect(throws: ToolError.self) { try change.run(file) }
      #expect(file.bytes == Self.image)
    }
  }
}
