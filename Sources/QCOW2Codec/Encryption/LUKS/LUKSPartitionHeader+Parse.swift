import BlockCore

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
    guard area.count >= LUKSFields.length else {
      throw .truncated(found: area.count, expected: LUKSFields.length)
    }
    let fields = LUKSFields(parsing: unsafe area.assumingMemoryBound(to: UInt8.self).span)
    try Self.checkIdentity(fields)
    suite = try Self.suite(fields)
    hash = try Self.hash(fields.hash, field: "hash")
    payloadSector = fields.payloadSector
    digest = fields.digest
    digestSalt = fields.digestSalt
    digestIterations = fields.digestIterations
    uuid = fields.uuid
    slots = []
    try Self.check(digestIterations, "master key iterations", limits)
    for (number, slot) in fields.slots.enumerated() {
      slots.append(try checked(slot, number, limits, areaLength: area.count))
    }
  }

  private static func checkIdentity(_ fields: LUKSFields) throws(LUKSError) {
    guard fields.magic == LUKSFields.luksMagic else {
      throw .badField(
        name: "magic", found: hex(fields.magic), allowed: hex(LUKSFields.luksMagic))
    }
    guard fields.version == version else {
      throw .badField(name: "version", found: "\(fields.version)", allowed: "\(version)")
    }
  }

  /// The six bytes of a magic number.
  private static func hex(_ magic: UInt64) -> String {
    let digits = String(magic, radix: 16)
    return "0x" + String(repeating: "0", count: 12 - digits.count) + digits
  }

  private static func hash(_ name: String, field: String) throws(LUKSError) -> HashAlgorithm {
    if let hash = HashAlgorithm(rawValue: name) { return hash }
    let known = HashAlgorithm.allCases.map(\.rawValue).joined(separator: ", ")
    throw .badField(name: field, found: name, allowed: known)
  }

  private static func suite(_ fields: LUKSFields) throws(LUKSError) -> CipherSuite {
    guard fields.cipher == "aes" else {
      throw .badField(name: "cipher", found: fields.cipher, allowed: "aes")
    }
    let (mode, iv) = try mode(fields.mode)
    let allowed = AESKeyLength.allCases.map { CipherSuite($0, mode, iv) }
    if let suite = allowed.first(where: { $0.keyLength == Int(fields.keyBytes) }) { return suite }
    throw .badField(
      name: "key bytes", found: "\(fields.keyBytes)",
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

  /// Checks a slot; of one that is not in use only the mark must be right.
  private func checked(
    _ found: LUKSFields.Slot, _ number: Int, _ limits: LUKSLimits, areaLength: Int
  ) throws(LUKSError) -> Slot {
    guard found.isActive || found.mark == LUKSFields.freeSlot else {
      throw .badField(
        name: "mark of key slot \(number)", found: "0x\(String(found.mark, radix: 16))",
        allowed: "0xac71f3 or 0xdead")
    }
    let slot = Slot(
      isActive: found.isActive, iterations: found.iterations, salt: found.salt,
      materialSector: found.materialSector)
    guard slot.isActive else { return slot }
    try Self.check(slot.iterations, "iterations of key slot \(number)", limits)
    guard found.stripes == Self.stripes else {
      throw .badField(
        name: "stripes of key slot \(number)", found: "\(found.stripes)", allowed: "\(Self.stripes)"
      )
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
