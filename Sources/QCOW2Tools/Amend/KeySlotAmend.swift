import BlockCore
package import QCOW2Codec
import QCOW2Format

/// A change of the key slots of a LUKS header.
package struct KeySlotChange: Sendable {
  package enum Action: Sendable {
    /// Adds a passphrase, to the first free slot if no slot is named.
    case add(Secret, slot: UInt64?, milliseconds: Int)
    /// Erases slots: the one named, those that the passphrase opens, or the one named if the passphrase
    /// opens it.
    case erase(slot: UInt64?, Secret?)
  }

  /// How long opening a slot takes when nothing else is said.
  package static let standardMilliseconds = 2000

  package var action: Action
  /// What unlocks the image; needed to add a passphrase.
  package var unlocking: Secret?
  /// Overwrite slots in use, and erase the last one.
  package var isForced: Bool

  /// A change.
  package init(_ action: Action, unlocking: Secret? = nil, isForced: Bool = false) {
    self.action = action
    self.unlocking = unlocking
    self.isForced = isForced
  }

  /// The change that the words of `-o` mean; `secret` finds a passphrase by its id.
  ///
  /// - Throws: ``ToolError/amend(_:)`` for words that do not go together, or what `secret` throws.
  package init(
    _ words: KeySlotWords, unlocking: Secret?, isForced: Bool,
    secret: (String) throws(ToolError) -> Secret
  ) throws(ToolError) {
    let old = try words.oldSecret.map(secret)
    let wanted = words.newSecret.flatMap { $0.isEmpty ? nil : $0 }
    let obstacle: KeySlotObstacle
    switch words.state {
    case .active:
      if let wanted, old == nil {
        self.init(
          .add(
            try secret(wanted), slot: words.slot,
            milliseconds: words.milliseconds ?? Self.standardMilliseconds),
          unlocking: unlocking, isForced: isForced)
        return
      }
      obstacle = old == nil ? .newSecretMissing : .oldSecretWithActive
    case .inactive:
      if wanted != nil {
        obstacle = .newSecretWithInactive
      } else if words.milliseconds != nil {
        obstacle = .iterTimeWithInactive
      } else if words.slot == nil && old == nil {
        obstacle = .nothingToErase
      } else {
        self.init(
          .erase(slot: words.slot, old), unlocking: unlocking, isForced: isForced)
        return
      }
    case nil: obstacle = .stateMissing
    }
    throw .amend(.keySlot(obstacle))
  }

  /// Carries the change out on an image that is locked for writing.
  ///
  /// - Throws: ``ToolError/amend(_:)`` or ``ToolError/luks(_:)`` with nothing changed; any other error
  ///   leaves the slots as after a crash: see ``LUKSKeySlots``.
  package func run(_ file: any WritableImageBytes) throws(ToolError) {
    let head = try HeaderCluster(reading: file)
    guard head.header.cryptMethod != 0 else { throw .amend(.notEncrypted) }
    guard head.header.cryptMethod == 2, let pointer = head.encryptionHeader else {
      throw .amend(.notLUKS)
    }
    let length = min(pointer.length, UInt64(LUKSPartitionHeader.largestArea))
    guard pointer.offset.bytes < FormatLimit.hostOffset else {
      throw .luks(.truncated(found: 0, expected: Int(length)))
    }
    let block = try file.block(at: pointer.offset, count: Int(length))
    var slots: LUKSKeySlots
    let steps: [LUKSKeySlots.Step]
    do throws(LUKSError) {
      slots = try LUKSKeySlots(area: block.withBytes { $0.copy(0..<$0.count) })
    } catch { throw .luks(error) }
    switch action {
    case .add(let secret, let slot, let milliseconds):
      steps = try add(secret, slot, milliseconds, &slots)
    case .erase(let slot, let secret): steps = try erase(slot, secret, &slots)
    }
    for step in steps {
      for write in step {
        let buffer = IOBuffer(starting: write.bytes, count: write.bytes.count)
        try unsafe file.write(buffer.bytes, at: pointer.offset + UInt64(write.offset))
        withExtendedLifetime(buffer) {}
      }
      try file.sync()
    }
  }

  private func number(_ slot: UInt64) throws(ToolError) -> Int {
    guard slot < UInt64(LUKSKeySlots.count) else { throw .amend(.keySlot(.badSlot(slot))) }
    return Int(slot)
  }

  private func add(
    _ secret: Secret, _ slot: UInt64?, _ milliseconds: Int, _ slots: inout LUKSKeySlots
  ) throws(ToolError) -> [LUKSKeySlots.Step] {
    let target: Int
    if let slot {
      target = try number(slot)
      if slots.active.contains(target), !isForced { throw .amend(.keySlot(.active(target))) }
    } else {
      guard let first = slots.free.first else { throw .amend(.keySlot(.noFreeSlot)) }
      target = first
    }
    guard let unlocking else { throw .amend(.keySlot(.secretMissing)) }
    do throws(LUKSError) {
      guard let masterKey = try slots.open(unlocking)?.masterKey else { throw .wrongPassphrase }
      if !slots.active.contains(target) {
        return try slots.fill(
          target, masterKey, passphrase: secret, milliseconds: milliseconds)
      }
      // The only slot in use: until it is whole again, another one has the new passphrase.
      var steps: [LUKSKeySlots.Step] = []
      let other = slots.active == [target] ? slots.free.first : nil
      if let other {
        steps += try slots.fill(other, masterKey, passphrase: secret, milliseconds: milliseconds)
      }
      steps += try slots.erase(target)
      steps += try slots.fill(target, masterKey, passphrase: secret, milliseconds: milliseconds)
      if let other { steps += try slots.erase(other) }
      return steps
    } catch { throw .luks(error) }
  }

  private func erase(
    _ slot: UInt64?, _ secret: Secret?, _ slots: inout LUKSKeySlots
  ) throws(ToolError) -> [LUKSKeySlots.Step] {
    let named = try slot.map(number)
    var matching: [Int]?
    do throws(LUKSError) {
      matching = try secret.map { (secret) throws(LUKSError) in
        try slots.open(secret)?.slots ?? []
      }
    } catch { throw .luks(error) }
    let targets = try targets(named, matching, slots)
    do throws(LUKSError) {
      var steps: [LUKSKeySlots.Step] = []
      for number in targets { steps += try slots.erase(number) }
      return steps
    } catch { throw .luks(error) }
  }

  private func targets(
    _ named: Int?, _ matching: [Int]?, _ slots: LUKSKeySlots
  ) throws(ToolError) -> [Int] {
    let obstacle: KeySlotObstacle
    switch (named, matching) {
    case (let slot?, let matching?) where !matching.contains(slot): obstacle = .otherSecret(slot)
    case (let slot?, _):
      if !slots.active.contains(slot), !isForced {
        obstacle = .inactive(slot)
      } else if slots.active == [slot], !isForced {
        obstacle = .onlyActive(slot)
      } else {
        return [slot]
      }
    case (nil, let matching?):
      if matching.isEmpty {
        obstacle = .noMatch
      } else if matching == slots.active, !isForced {
        obstacle = .allActive
      } else {
        return matching
      }
    case (nil, nil): obstacle = .nothingToErase
    }
    throw .amend(.keySlot(obstacle))
  }
}
