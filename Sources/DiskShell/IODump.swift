import Glibc

/// Bytes in rows of 16, with their offsets and, where they are letters or digits, themselves.
struct IODump {
  private var row: [UInt8] = []
  private var rowStart: UInt64
  private var text: [UInt8] = []

  /// - Parameter offset: of the first byte.
  init(at offset: UInt64) { rowStart = offset }

  /// Takes the next bytes.
  mutating func add(_ bytes: UnsafeRawBufferPointer) {
    for index in 0..<bytes.count {
      unsafe row.append(bytes[index])
      if row.count == 16 { endRow() }
    }
  }

  /// The rows that are whole, once.
  mutating func takeRows() -> String {
    defer { text.removeAll() }
    return String(decoding: text, as: UTF8.self)
  }

  /// The rest, the last row with it.
  mutating func takeAll() -> String {
    if !row.isEmpty { endRow() }
    return takeRows()
  }

  private mutating func endRow() {
    let address = String(rowStart, radix: 16)
    text += String(repeating: "0", count: max(0, 8 - address.utf8.count)).utf8
    text += "\(address):  ".utf8
    for byte in row { text += [Self.digit(byte >> 4), Self.digit(byte & 15), UInt8(ascii: " ")] }
    text.append(UInt8(ascii: " "))
    for byte in row {
      text.append(byte < 128 && isalnum(Int32(byte)) != 0 ? byte : UInt8(ascii: "."))
    }
    text.append(UInt8(ascii: "\n"))
    rowStart += UInt64(row.count)
    row.removeAll(keepingCapacity: true)
  }

  private static func digit(_ value: UInt8) -> UInt8 {
    value < 10 ? UInt8(ascii: "0") + value : UInt8(ascii: "a") + value - 10
  }
}
