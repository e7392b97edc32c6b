import DiskImages

extension IOParser {
  static func open(_ words: [String], _ command: IOCommandSpec) throws(IOFailure) -> IOAction {
    let words = try IOWords(words, flags: "rsCnkU", valued: "itdo", of: command)
    guard words.operands.count < 2 else { throw .usage(command) }
    return .open(try IOFailure.opening { () throws(OpeningError) in try opening(words) })
  }

  private static func opening(_ words: IOWords) throws(OpeningError) -> DiskOpening {
    var opening = DiskOpening()
    opening.isReadOnly = words.has("r")
    opening.usesOverlay = words.has("s")
    opening.copiesOnRead = words.has("C")
    opening.sharesByForce = words.has("U")
    if words.has("n") { opening.cache = .none }
    if let mode = words.value("t") { try opening.setCache(mode) }
    if let mode = words.value("d") { try opening.setDiscard(mode) }
    for option in words.options where option.letter == "o" {
      try opening.apply(list: option.value ?? "")
    }
    if let path = words.operands.first { try opening.setName(path) }
    return opening
  }

  static func reopen(_ words: [String], _ command: IOCommandSpec) throws(IOFailure) -> IOAction {
    let words = try IOWords(words, flags: "rw", valued: "co", of: command)
    guard words.operands.isEmpty else { throw .usage(command) }
    if words.has("r") && words.has("w") { throw .exclusive("Only one -r/-w option can be given") }
    var change = IOReopening()
    if words.has("r") || words.has("w") { change.isReadOnly = words.has("r") }
    change.cache = words.value("c")
    change.lists = words.options.filter { $0.letter == "o" }.map { $0.value ?? "" }
    return .reopen(change)
  }
}
