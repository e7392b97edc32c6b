extension IOParser {
  static func write(_ words: [String], _ command: IOCommandSpec) throws(IOFailure) -> IOAction {
    let words = try IOWords(words, flags: "bcCfnpqruz", valued: "Ps", of: command)
    let pattern = try self.pattern(words)
    guard words.operands.count == 2 else { throw .usage(command) }
    try checkTogether(words, hasPattern: pattern != nil)
    let isZeroes = words.has("z")
    let offset = try IONumber.bytes(words.operands[0])
    let count = try IONumber.bytes(words.operands[1])
    guard count <= IOLimit.length || words.has("n") else {
      throw .lengthLimit(words.operands[1], unlessNoFallback: true)
    }
    var content = IOWrite.Content.pattern(pattern ?? 0xcd)
    if let path = words.value("s") { content = .source(path: path) }
    if isZeroes { content = .zeroes(unmaps: words.has("u"), allowsFallback: !words.has("n")) }
    let isCompressed = words.has("c") && !isZeroes && !words.has("b")
    if words.has("b") || words.has("c") { try requireSectors(offset, count) }
    return .write(
      IOWrite(
        name: "write", offset: offset, count: count, content: content,
        isCompressed: isCompressed, isFUA: words.has("f"), isState: words.has("b"),
        printing: printing(words)))
  }

  private static func checkTogether(_ words: IOWords, hasPattern: Bool) throws(IOFailure) {
    if words.has("b") && words.has("z") {
      throw .exclusive("-b and -z cannot be specified at the same time")
    }
    if words.has("f") && (words.has("b") || words.has("c")) {
      throw .exclusive("-f and -b or -c cannot be specified at the same time")
    }
    if words.has("n") && !words.has("z") { throw .needsZeroes("n") }
    if words.has("u") && !words.has("z") { throw .needsZeroes("u") }
    let contents = [words.has("z"), hasPattern, words.value("s") != nil].filter { $0 }.count
    if contents > 1 {
      throw .exclusive("Only one of -z, -P, and -s can be specified at the same time")
    }
  }

  static func writeVector(
    _ words: [String], _ command: IOCommandSpec
  ) throws(IOFailure) -> IOAction {
    let words = try IOWords(words, flags: "Cfqr", valued: "P", of: command)
    return .write(try vector(words, command, name: "writev"))
  }

  static func startWrite(
    _ words: [String], _ command: IOCommandSpec
  ) throws(IOFailure) -> IOAction {
    let words = try IOWords(words, flags: "Cfiqruz", valued: "P", of: command)
    guard words.has("z") else {
      if words.has("u") { throw .needsZeroes("u") }
      var write = try vector(words, command, name: "aio_write")
      write.isInvalid = words.has("i")
      return .startWrite(write)
    }
    _ = try pattern(words)
    guard words.operands.count >= 2 else { throw .usage(command) }
    guard words.operands.count == 2 else { throw .singleLength }
    return .startWrite(
      IOWrite(
        name: "aio_write", offset: try IONumber.bytes(words.operands[0]),
        count: try IONumber.bytes(words.operands[1]),
        content: .zeroes(unmaps: words.has("u"), allowsFallback: true), isFUA: words.has("f"),
        isInvalid: words.has("i"), printing: printing(words)))
  }

  private static func vector(
    _ words: IOWords, _ command: IOCommandSpec, name: String
  ) throws(IOFailure) -> IOWrite {
    let pattern = try self.pattern(words)
    guard words.operands.count >= 2 else { throw .usage(command) }
    return IOWrite(
      name: name, offset: try IONumber.bytes(words.operands[0]),
      count: try total(words.operands.dropFirst()), content: .pattern(pattern ?? 0xcd),
      isFUA: words.has("f"), printing: printing(words))
  }
}
