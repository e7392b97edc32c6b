extension IOParser {
  static func read(_ words: [String], _ command: IOCommandSpec) throws(IOFailure) -> IOAction {
    let words = try IOWords(words, flags: "abCpqrv", valued: "lPs", of: command)
    let pattern = try self.pattern(words)
    let start: UInt64? = if let word = words.value("s") { try IONumber.bytes(word) } else { nil }
    let most: UInt64? = if let word = words.value("l") { try IONumber.bytes(word) } else { nil }
    guard words.operands.count == 2, pattern != nil || start == nil && most == nil else {
      throw .usage(command)
    }
    var read = IORead(
      name: "read", offset: try IONumber.bytes(words.operands[0]),
      count: try length(words.operands[1]), pattern: pattern, dumps: words.has("v"),
      isState: words.has("b"), printing: printing(words))
    read.verified = try verified(from: start ?? 0, count: most, of: read.count)
    if read.isState { try requireSectors(read.offset, read.count) }
    return .read(read)
  }

  static func readVector(
    _ words: [String], _ command: IOCommandSpec
  ) throws(IOFailure) -> IOAction {
    let words = try IOWords(words, flags: "Cqrv", valued: "P", of: command)
    return .read(try vector(words, command))
  }

  static func startRead(
    _ words: [String], _ command: IOCommandSpec
  ) throws(IOFailure) -> IOAction {
    let words = try IOWords(words, flags: "Ciqrv", valued: "P", of: command)
    var read = try vector(words, command)
    read.isInvalid = words.has("i")
    return .startRead(read)
  }

  private static func vector(
    _ words: IOWords, _ command: IOCommandSpec
  ) throws(IOFailure) -> IORead {
    let pattern = try self.pattern(words)
    guard words.operands.count >= 2 else { throw .usage(command) }
    var read = IORead(
      name: "readv", offset: try IONumber.bytes(words.operands[0]),
      count: try total(words.operands.dropFirst()), pattern: pattern, dumps: words.has("v"),
      printing: printing(words))
    read.verified = 0..<read.count
    return read
  }

  static func pattern(_ words: IOWords) throws(IOFailure) -> UInt8? {
    guard let word = words.value("P") else { return nil }
    return try IONumber.pattern(word)
  }

  private static func verified(
    from start: UInt64, count: UInt64?, of total: UInt64
  ) throws(IOFailure) -> Range<UInt64> {
    guard start <= total, count ?? 0 <= total - start else { throw .verificationRange }
    return start..<(start + (count ?? total - start))
  }
}
