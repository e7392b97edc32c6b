/// A file's name as it stands in an image or on a command line, in QEMU's language.
///
/// Text before a colon, with no slash in between, is a protocol. Of these only `file:` is a file.
public enum FileReference: Equatable, Sendable {
  case path(String)
  /// `file:` before a relative path.
  case relativeURL(String)
  /// A `json:` name: a QEMU block device tree.
  case json
  case scheme(String)
  case empty

  public init(parsing name: String) {
    guard let end = name.firstIndex(where: { $0 == ":" || $0 == "/" }), name[end] == ":" else {
      self = name.isEmpty ? .empty : .path(name)
      return
    }
    let scheme = String(name[..<end])
    let rest = String(name[name.index(after: end)...])
    switch scheme {
    case "json": self = .json
    case "file": self = rest.hasPrefix("/") ? .path(rest) : .relativeURL(rest)
    default: self = .scheme(scheme)
    }
  }

  /// The path that a user means by a name on the command line: `file:NAME` is NAME.
  ///
  /// Everything else is a path as it is, whatever it looks like.
  public static func commandLinePath(_ name: String) -> String {
    name.hasPrefix("file:") && name.utf8.count > 5 ? String(name.dropFirst(5)) : name
  }
}

extension FileReference {
  /// Why the name cannot be used as that of a file; nil for a path.
  public var problem: String? {
    switch self {
    case .path: nil
    case .relativeURL: "\"file:\" is supported before an absolute path only"
    case .json: "\"json:\" names are not supported, only paths are"
    case .scheme(let name): "protocol \"\(name)\" is not supported, only paths are"
    case .empty: "the name is empty"
    }
  }
}
