extension LUKSPartitionHeader {
  /// The 592 bytes.
  var encoded: [UInt8] {
    var bytes = Self.magic
    bytes.append(UInt16(Self.version))
    bytes.append("aes", paddedTo: 32)
    bytes.append(suite.modeText, paddedTo: 32)
    bytes.append(hash.rawValue, paddedTo: 32)
    bytes.append(payloadSector)
    bytes.append(UInt32(suite.keyLength))
    bytes += digest
    bytes += digestSalt
    bytes.append(digestIterations)
    bytes.append(uuid, paddedTo: 40)
    for slot in slots {
      bytes.append(slot.isActive ? Self.activeSlot : Self.freeSlot)
      bytes.append(slot.iterations)
      bytes += slot.salt
      bytes.append(slot.materialSector)
      bytes.append(UInt32(Self.stripes))
    }
    return bytes
  }
}

extension CipherSuite {
  /// Mode and way to make initialisation vectors as a header spells them, such as `xts-plain64`.
  var modeText: String {
    switch iv {
    case .plain: "\(mode.rawValue)-plain"
    case .plain64: "\(mode.rawValue)-plain64"
    case .essiv(let hash): "\(mode.rawValue)-essiv:\(hash.rawValue)"
    }
  }
}

extension [UInt8] {
  /// Appends a number, most significant byte first.
  fileprivate mutating func append(_ number: some FixedWidthInteger) {
    unsafe Swift.withUnsafeBytes(of: number.bigEndian) { unsafe append(contentsOf: $0) }
  }

  /// Appends a text that is shorter than its field.
  fileprivate mutating func append(_ text: String, paddedTo length: Int) {
    let text = text.utf8.prefix(length - 1)
    append(contentsOf: text)
    append(contentsOf: repeatElement(0, count: length - text.count))
  }
}
