import CPlatform

/// A word of the command line that cannot be taken as text.
struct ArgumentError: Error {
  /// The word's number, from 1, and its bytes.
  let number: Int
  let bytes: [UInt8]

  var text: String {
    "argument \(number) is not UTF-8: \"\(Self.escaped(bytes))\": give the file a name that is, "
      + "a symbolic link for one"
  }

  /// The printable characters of ASCII as they are, all else in octal.
  private static func escaped(_ bytes: [UInt8]) -> String {
    bytes.map { byte in
      if (0x20..<0x7f).contains(byte), byte != UInt8(ascii: "\\") {
        return String(Unicode.Scalar(byte))
      }
      let digits = String(byte, radix: 8)
      return "\\" + String(repeating: "0", count: 3 - digits.count) + digits
    }.joined()
  }
}

/// The words that the program was started with.
enum ProgramArguments {
  /// All but the program's own name.
  static func all() throws(ArgumentError) -> [String] {
    var words: [String] = []
    for index in 1..<max(Int(qublk_argument_count()), 1) {
      guard let word = unsafe qublk_argument(Int32(index)) else { break }
      guard let text = unsafe String(validatingCString: word) else {
        throw ArgumentError(number: index, bytes: unsafe bytes(of: word))
      }
      words.append(text)
    }
    return words
  }

  private static func bytes(of word: UnsafePointer<CChar>) -> [UInt8] {
    var bytes: [UInt8] = []
    var next = unsafe word
    while unsafe next.pointee != 0 {
      unsafe bytes.append(UInt8(truncatingIfNeeded: next.pointee))
      unsafe next += 1
    }
    return bytes
  }
}
