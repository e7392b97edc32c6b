/// An object of `--object secret,…`: where a passphrase comes from.
struct IOSecret: Sendable {
  enum Source: Sendable {
    /// The passphrase itself: visible in the process list.
    case data(String)
    case file(String)
  }

  let id: String
  let source: Source

  /// Reads `secret,id=NAME,data=TEXT` or `secret,id=NAME,file=PATH`.
  init(parsing text: String) throws(IOFailure) {
    var pairs = IOOpening.pairs(text)[...]
    let kind = pairs.popFirst()
    guard kind?.name == "secret" || kind?.name == "qom-type" && kind?.value == "secret" else {
      throw .openOption("--object: \"\(kind?.name ?? "")\" is not known, expected \"secret\"")
    }
    var (id, source): (String?, Source?) = (nil, nil)
    for (name, value) in pairs {
      switch name {
      case "id": id = value
      case "data": source = .data(value)
      case "file": source = .file(value)
      case "format" where value == "raw": break
      default: throw .openOption("--object secret: \"\(name)=\(value)\" is not supported")
      }
    }
    guard let id else { throw .openOption("--object secret: \"id\" is missing") }
    guard let source else {
      throw .openOption("--object secret: one of \"data\" and \"file\" is needed")
    }
    (self.id, self.source) = (id, source)
  }
}
