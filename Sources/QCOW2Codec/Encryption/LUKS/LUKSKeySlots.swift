/// The key slots of a LUKS header, and how they change.
///
/// A crash during a change takes away no passphrase but the one that is removed. For that, a slot is filled
/// before it is marked active, and it is marked inactive before it is overwritten; each of these is durable
/// before the next. Each mark lies in one sector. A change is a list of steps. The owner of the file writes them, and makes each durable before
/// the next. If a crash leaves a slot inactive but not overwritten, the slot can be erased again.
@safe package struct LUKSKeySlots {
  /// Bytes, and where they go, from the start of the header.
  package struct Write: Equatable, Sendable {
    package let offset: Int
    package let bytes: [UInt8]
  }

  /// What may reach the file in any order.
  package typealias Step = [Write]

  private var header: LUKSPartitionHeader
  private var area: [UInt8]

  /// Reads a header.
  ///
  /// - Parameter area: The header and all key material.
  /// - Throws: ``LUKSError`` if the header is broken or asks for what is not supported.
  package init(area: [UInt8]) throws(LUKSError) {
    self.area = area
    header = try unsafe area.withBytes { (bytes) throws(LUKSError) in
      try unsafe LUKSPartitionHeader(parsing: bytes)
    }
  }

  /// How many slots a header has.
  package static var count: Int { LUKSFields.slotCount }
  /// The slots in use, ascending.
  package var active: [Int] { header.slots.indices.filter { header.slots[$0].isActive } }
  /// The slots that are free, ascending.
  package var free: [Int] { header.slots.indices.filter { !header.slots[$0].isActive } }

  /// The slots in use that a passphrase opens, and the master key; nil if there are none.
  ///
  /// Takes as long as the iterations of all slots do.
  ///
  /// - Throws: ``LUKSError/cipher(_:)`` if libcrypto lacks an algorithm or there is no memory.
  package func open(
    _ passphrase: Secret
  ) throws(LUKSError) -> (slots: [Int], masterKey: Secret)? {
    var found: (slots: [Int], masterKey: Secret)?
    for number in active {
      guard let key = try masterKey(of: number, passphrase) else { continue }
      found = ((found?.slots ?? []) + [number], key)
    }
    return found
  }

  private func masterKey(
    of number: Int, _ passphrase: Secret
  ) throws(LUKSError) -> Secret? {
    let key = try unsafe area.withBytes { (bytes) throws(LUKSError) in
      try unsafe LUKSKeySlot.open(
        header.slots[number], of: header, in: bytes, passphrase: passphrase)
    }
    return try header.isDigest(of: key) ? key : nil
  }

  /// Puts the master key into a slot that is free.
  ///
  /// - Parameters:
  ///   - number: Of the slot, below ``count``.
  ///   - masterKey: As ``open(_:)`` gave it.
  ///   - passphrase: What opens the slot.
  ///   - milliseconds: How long that takes on this machine.
  /// - Returns: What is to be written.
  /// - Throws: ``LUKSError/badField(name:found:allowed:)`` if the slot's key material has no place of its
  ///   own.
  package mutating func fill(
    _ number: Int, _ masterKey: Secret, passphrase: Secret, milliseconds: Int
  ) throws(LUKSError) -> [Step] {
    assert(!header.slots[number].isActive, "a slot in use is filled")
    try requirePlace(number)
    var slot = header.slots[number]
    do throws(CipherError) {
      slot.iterations = try KeyDerivation.iterations(
        taking: milliseconds, hash: header.hash, count: header.suite.keyLength,
        minimum: LUKSFormat.smallestIterations, maximum: LUKSLimits().iterations)
    } catch { throw .cipher(error) }
    slot.salt = try Randomness.bytes(LUKSFields.saltLength)
    let material = try LUKSKeySlot.seal(masterKey, in: slot, of: header, passphrase: passphrase)
    slot.isActive = true
    header.slots[number] = slot
    let fields = fields(of: number)
    let steps: [Step] = [
      [Write(offset: slot.materialOffset, bytes: material), fields.rest], [fields.mark],
    ]
    note(steps)
    return steps
  }

  /// Takes the master key out of a slot, whether it is in use or not.
  ///
  /// - Returns: What is to be written.
  /// - Throws: ``LUKSError/noRandomness``, or that the slot's key material has no place of its own.
  package mutating func erase(_ number: Int) throws(LUKSError) -> [Step] {
    try requirePlace(number)
    var slot = header.slots[number]
    slot.isActive = false
    slot.iterations = 0
    slot.salt = [UInt8](repeating: 0, count: LUKSFields.saltLength)
    header.slots[number] = slot
    let fields = fields(of: number)
    let noise = try Randomness.bytes(header.materialLength)
    let steps: [Step] = [
      [fields.mark], [Write(offset: slot.materialOffset, bytes: noise), fields.rest],
    ]
    note(steps)
    return steps
  }

  /// The mark of a slot, and the other fields that change with it.
  private func fields(of number: Int) -> (mark: Write, rest: Write) {
    let start = LUKSFields.slotPosition(number)
    let bytes = Array(header.encoded[start..<(start + LUKSFields.slotLength)])
    return (
      Write(offset: start, bytes: Array(bytes[..<4])),
      Write(offset: start + 4, bytes: Array(bytes[4...]))
    )
  }

  private mutating func note(_ steps: [Step]) {
    for write in steps.joined() {
      area.replaceSubrange(write.offset..<(write.offset + write.bytes.count), with: write.bytes)
    }
  }

  /// Throws if writing the slot's key material would hit anything but that.
  private func requirePlace(_ number: Int) throws(LUKSError) {
    let range = place(of: number)
    let isAlone = header.slots.indices.allSatisfy {
      $0 == number || !header.slots[$0].isActive || !place(of: $0).overlaps(range)
    }
    let least = LUKSPartitionHeader.materialAlignment * SectorTransform.sectorSize
    guard range.lowerBound >= least, range.upperBound <= area.count, isAlone else {
      throw .badField(
        name: "key material sector of slot \(number)",
        found: "\(header.slots[number].materialSector)",
        allowed: "a place inside the header that no other slot has")
    }
  }

  private func place(of number: Int) -> Range<Int> {
    let start = header.slots[number].materialOffset
    return start..<(start + header.materialLength)
  }
}

extension LUKSPartitionHeader {
  /// Whether a key is the master key.
  func isDigest(of key: Secret) throws(LUKSError) -> Bool {
    let digest = try digest(of: key)
    return unsafe digest.withBytes { found in
      unsafe self.digest.withUnsafeBytes { unsafe CryptoLibrary.areEqual(found, $0) }
    }
  }
}

extension [UInt8] {
  /// The library's own has no typed errors.
  fileprivate func withBytes<R>(
    _ body: (UnsafeRawBufferPointer) throws(LUKSError) -> R
  ) throws(LUKSError) -> R {
    let result: Result<R, LUKSError> = unsafe withUnsafeBytes { bytes in
      do throws(LUKSError) { return .success(try unsafe body(bytes)) } catch {
        return .failure(error)
      }
    }
    return try result.get()
  }
}
