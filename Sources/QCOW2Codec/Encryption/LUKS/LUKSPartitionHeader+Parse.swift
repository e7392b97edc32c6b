/// Big-endian numbers and texts of a header's bytes, whose number the caller has checked.
private struct HeaderReader {
  let bytes: [UInt8]

  func number(_ offset: Int, _ count: Int) -> UInt32 {
    bytes[offset..<(offset + count)].reduce(0) { $0 << 8 | UInt32($1) }
  }

  func be32(_ offset: Int) -> UInt32 { number(offset, 4) }

  func slice(_ offset: Int, _ count: Int) -> [UInt8] { Array(bytes[offset..<(offset + count)]) }

  /// A text that ends at its first zero byte or at the end of its field.
  func text(_ offset: Int, _ count: Int) -> String {
    String(decoding: bytes[offset..<(offset + count)].prefix { $0 != 0 }, as: UTF8.self)
  }
}

extension LUKSPartitionHeader {
  /// Reads and checks the header at the start of `area`.
  ///
  /// - Parameters:
  ///   - area: The header and the key material, as much of both as the image holds.
  ///   - limits: What the header may ask for.
  /// - Throws: ``LUKSError/truncated(found:expected:)`` or
  ///   ``LUKSError/badField(name:found:allowed:)``.
  package init(
    parsing area: UnsafeRawBufferPointer, limits: LUKSLimits = LUKSLimits()
  ) throws(LUKSError) {
    guard area.count >= Self.length else {
      throw .truncated(found: area.count, expected: Self.length)
    }
    let reader = unsafe HeaderReader(bytes: Array(area.prefix(Self.length)))
    try Self.checkIdentity(reader)
    suite = try Self.suite(reader)
    hash = try Self.hash(reader.text(Field.hash, 32), field: "hash")
    payloadSector = reader.be32(Field.payload)
    digest = reader.slice(Field.digest, Self.digestLength)
    digestSalt = reader.slice(Field.digestSalt, Self.saltLength)
    digestIterations = reader.be32(Field.digestIterations)
    uuid = reader.text(Field.uuid, 40)
    slots = []
    try Self.check(digestIterations, "master key iterations", limits)
    for number in 0..<Self.slotCount {
      slots.append(try slot(number, reader, limits, areaLength: area.count))
    }
  }

  private static func checkIdentity(_ reader: HeaderReader) throws(LUKSError) {
    let found = reader.slice(0, magic.count)
    guard found == magic else {
      throw .badField(name: "magic", found: hex(found), allowed: hex(magic))
    }
    let number = reader.number(Field.version, 2)
    guard number == version else {
      throw .badField(name: "version", found: "\(number)", allowed: "\(version)")
    }
  }

  private static func hex(_ bytes: [UInt8]) -> String {
    "0x" + bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
  }

  private static func hash(_ name: String, field: String) throws(LUKSError) -> HashAlgorithm {
    if let hash = HashAlgorithm(rawValue: name) { return hash }
    let known = HashAlgorithm.allCases.map(\.rawValue).joined(separator: ", ")
    throw .badField(name: field, found: name, allowed: known)
  }

  private static func suite(_ reader: HeaderReader) throws(LUKSError) -> CipherSuite {
    let name = reader.text(Field.cipher, 32)
    guard name == "aes" else { throw .badField(name: "cipher", found: name, allowed: "aes") }
    let (mode, iv) = try mode(reader.text(Field.mode, 32))
    let keyBytes = reader.be32(Field.keyBytes)
    let allowed = AESKeyLength.allCases.map { CipherSuite($0, mode, iv) }
    if let suite = allowed.first(where: { $0.keyLength == Int(keyBytes) }) { return suite }
    throw .badField(
      name: "key bytes", found: "\(keyBytes)",
      allowed: allowed.map { "\($0.keyLength)" }.joined(separator: ", "))
  }

  /// Reads such as `xts-plain64` and `cbc-essiv:sha256`.
  private static func mode(_ text: String) throws(LUKSError) -> (CipherMode, IVGenerator) {
    let parts = text.split(separator: "-", maxSplits: 1, omittingEmptySubsequences: false)
    guard parts.count == 2, let mode = CipherMode(rawValue: String(parts[0])) else {
      throw .badField(
        name: "cipher mode", found: text,
        allowed: "ecb, cbc, ctr or xts, a dash and an IV generator")
    }
    switch parts[1] {
    case "plain": return (mode, .plain)
    case "plain64": return (mode, .plain64)
    case let word where word.hasPrefix("essiv:"):
      return (mode, .essiv(try hash(String(word.dropFirst(6)), field: "cipher mode's hash")))
    default:
      throw .badField(
        name: "IV generator", found: String(parts[1]), allowed: "plain, plain64 or essiv:HASH")
    }
  }

  private static func check(
    _ iterations: UInt32, _ name: String, _ limits: LUKSLimits
  ) throws(LUKSError) {
    guard iterations >= 1, iterations <= limits.iterations else {
      throw .badField(name: name, found: "\(iterations)", allowed: "1 to \(limits.iterations)")
    }
  }

  /// Reads a slot; of one that is not in use only the mark must be right.
  private func slot(
    _ number: Int, _ reader: HeaderReader, _ limits: LUKSLimits, areaLength: Int
  ) throws(LUKSError) -> Slot {
    let start = Field.slots + number * Field.slotLength
    let mark = reader.be32(start)
    guard mark == Self.activeSlot || mark == Self.freeSlot else {
      throw .badField(
        name: "mark of key slot \(number)", found: "0x\(String(mark, radix: 16))",
        allowed: "0xac71f3 or 0xdead")
    }
    let slot = Slot(
      isActive: mark == Self.activeSlot, iterations: reader.be32(start + 4),
      salt: reader.slice(start + 8, Self.saltLength), materialSector: reader.be32(start + 40))
    guard slot.isActive else { return slot }
    try Self.check(slot.iterations, "iterations of key slot \(number)", limits)
    let stripes = reader.be32(start + 44)
    guard stripes == Self.stripes else {
      throw .badField(
        name: "stripes of key slot \(number)", found: "\(stripes)", allowed: "\(Self.stripes)")
    }
    let end = min(areaLength, Int(payloadSector) * SectorTransform.sectorSize)
    let last = (end - materialLength) / SectorTransform.sectorSize
    guard slot.materialSector >= Self.materialAlignment, slot.materialSector <= max(0, last) else {
      throw .badField(
        name: "key material sector of slot \(number)", found: "\(slot.materialSector)",
        allowed: "\(Self.materialAlignment) to \(last)")
    }
    return slot
  }
}
