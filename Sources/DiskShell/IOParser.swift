import QCOW2Tools

/// Turns the words of the commands into actions; touches nothing.
enum IOParser {
  static func allocation(
    _ words: [String], _ command: IOCommandSpec
  ) throws(IOFailure) -> IOAction {
    let offset = try IONumber.bytes(words[0])
    return .allocation(
      offset: offset, count: words.count > 1 ? try IONumber.bytes(words[1]) : 512)
  }

  static func discard(_ words: [String], _ command: IOCommandSpec) throws(IOFailure) -> IOAction {
    let words = try IOWords(words, flags: "Cq", valued: "", of: command)
    guard words.operands.count == 2 else { throw .usage(command) }
    let offset = try IONumber.bytes(words.operands[0])
    let count = try length(words.operands[1])
    return .discard(IODiscard(offset: offset, count: count, printing: printing(words)))
  }

  static func startDiscard(
    _ words: [String], _ command: IOCommandSpec
  ) throws(IOFailure) -> IOAction {
    guard case .discard(let discard) = try discard(words, command) else { throw .usage(command) }
    return .startDiscard(discard)
  }

  static func truncate(_ words: [String], _ command: IOCommandSpec) throws(IOFailure) -> IOAction {
    let words = try IOWords(words, flags: "", valued: "m", of: command)
    guard let size = words.operands.first else { throw .usage(command) }
    let word = words.value("m") ?? "off"
    guard let mode = Preallocation(rawValue: word) else { throw .badPreallocation(word) }
    return .truncate(try IONumber.bytes(size), mode)
  }

  static func signal(_ words: [String], _ command: IOCommandSpec) throws(IOFailure) -> IOAction {
    let number = try IONumber.bytes(words[0])
    guard number <= 64 else { throw .badNumber(words[0]) }
    return .signal(Int32(number))
  }

  // MARK: What several commands share

  static func printing(_ words: IOWords) -> IOPrinting {
    IOPrinting(isQuiet: words.has("q"), isForMachines: words.has("C"))
  }

  /// The length of a single request.
  static func length(_ word: String, allowsMore: Bool = false) throws(IOFailure) -> UInt64 {
    let count = try IONumber.bytes(word)
    guard allowsMore || count <= IOLimit.length else {
      throw .lengthLimit(word, unlessNoFallback: false)
    }
    return count
  }

  /// The sum of the lengths of a vector.
  static func total(_ words: some Sequence<String>) throws(IOFailure) -> UInt64 {
    var total: UInt64 = 0
    for word in words {
      let count = try IONumber.bytes(word)
      guard count <= IOLimit.length else { throw .vectorLimit(word) }
      total += count
      guard total <= IOLimit.length else { throw .vectorTotalLimit }
    }
    return total
  }

  static func requireSectors(_ offset: UInt64, _ count: UInt64) throws(IOFailure) {
    guard offset % 512 == 0 else { throw .unaligned(offset, "offset") }
    guard count % 512 == 0 else { throw .unaligned(count, "count") }
  }
}
