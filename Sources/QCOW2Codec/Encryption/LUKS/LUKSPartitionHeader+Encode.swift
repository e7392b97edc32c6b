import BlockCore

extension LUKSPartitionHeader {
  /// The 592 bytes.
  var encoded: [UInt8] {
    var bytes = Array(bigEndianBytes(LUKSFields.luksMagic).dropFirst(2))
    bytes += bigEndianBytes(UInt16(Self.version))
    bytes.append("aes", paddedTo: 32)
    bytes.append(suite.modeText, paddedTo: 32)
    bytes.append(hash.rawValue, paddedTo: 32)
    bytes += bigEndianBytes(payloadSector)
    bytes += bigEndianBytes(UInt32(suite.keyLength))
    bytes += digest
    bytes += digestSalt
    bytes += bigEndianBytes(digestIterations)
    bytes.append(uuid, paddedTo: 40)
    for slot in slots {
      bytes += bigEndianBytes(slot.isActive ? LUKSFields.activeSlot : LUKSFields.freeSlot)
      bytes += bigEndianBytes(slot.iterations)
      bytes += slot.salt
      bytes += bigEndianBytes(slot.materialSector)
      bytes += bigEndianBytes(UInt32(Self.stripes))
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
  /// Appends a text that is shorter than its field.
  fileprivate mutating func append(_ text: String, paddedTo length: Int) {
    let text = text.utf8.prefix(length - 1)
    append(contentsOf: text)
    append(contentsOf: repeatElement(0, count: length - text.count))
  }
}
