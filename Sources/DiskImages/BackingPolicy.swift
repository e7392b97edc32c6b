package import BlockCore

/// Which of the files that images refer to may be opened: backing files and external data files.
///
/// What the user names on the command line is not asked about. An image of the caller's own may name any file:
/// it is trusted as much as the command to attach it, and guests cannot write headers. By default an image of
/// somebody else may name only files beside it [SEC-1, SEC-3].
package struct BackingPolicy: Sendable, Equatable {
  package enum Rule: Sendable, Equatable {
    case any
    /// Files in the directory of the path by which the referring image was opened.
    case sameDirectory
    /// The file or directory with this real path, and everything below it.
    case below(String)
    /// Any file if one of these users owns the referring image, else files in its directory.
    case ownersChoice(Set<UInt32>)
  }

  /// A file is allowed if one of these allows it.
  package var rules: [Rule]

  package init(rules: [Rule]) { self.rules = rules }

  package static let any = Self(rules: [.any])
  package static let deny = Self(rules: [])
  package static let sameDirectory = Self(rules: [.sameDirectory])

  /// The default: images of the callers, who are user numbers, may name any file, all others those beside them.
  package static func trusting(_ callers: Set<UInt32>) -> Self {
    Self(rules: [.ownersChoice(callers)])
  }

  /// Reads the values of `--backing-policy`.
  ///
  /// One `deny`, or any number of `any`, `same-directory` and paths; none at all means that images of the
  /// callers are trusted. A path with the name of a word is written `./any`.
  ///
  /// - Throws: The value that is wrong, and why.
  package init(parsing values: [String], callers: Set<UInt32>) throws(BadValue) {
    if values.isEmpty {
      self = .trusting(callers)
    } else if values == ["deny"] {
      self = .deny
    } else {
      var rules: [Rule] = []
      for value in values { rules.append(try Self.rule(value)) }
      self.init(rules: rules)
    }
  }

  /// A value of `--backing-policy` that cannot be used.
  package struct BadValue: Error, Equatable {
    package enum Problem: Sendable, Equatable {
      /// `deny` beside something that allows.
      case denyBesideOthers
      /// Neither a word nor a path with a slash.
      case unknown
      /// The path leads nowhere.
      case path(Errno)
    }

    package let value: String
    package let problem: Problem

    /// The end of a message that has named the option.
    package var message: String {
      switch problem {
      case .denyBesideOthers: "deny cannot be combined with other values"
      case .unknown: "\"\(value)\" is none of deny, same-directory, any, or a path with a slash"
      case .path(let errno): "\(value): cannot resolve: \(errno)"
      }
    }
  }

  private static func rule(_ value: String) throws(BadValue) -> Rule {
    switch value {
    case "any": return .any
    case "same-directory": return .sameDirectory
    case "deny": throw BadValue(value: value, problem: .denyBesideOthers)
    default:
      guard value.contains("/") else { throw BadValue(value: value, problem: .unknown) }
      do throws(Errno) { return .below(try FilePath.real(value)) } catch {
        throw BadValue(value: value, problem: .path(error))
      }
    }
  }

  /// Whether the file with real path `file` may be opened for an image.
  func allows(_ file: String, for referrer: Referrer) -> Bool {
    rules.contains { Self.allows($0, file, referrer) }
  }

  /// Whether the choice was not the user's, and another one of theirs may be the way out.
  var isDefault: Bool { if case .ownersChoice? = rules.first { true } else { false } }

  private static func allows(_ rule: Rule, _ file: String, _ referrer: Referrer) -> Bool {
    switch rule {
    case .any: true
    case .sameDirectory: isBeside(file, referrer)
    case .below(let path): file == path || file.hasPrefix(path == "/" ? path : path + "/")
    case .ownersChoice(let callers):
      referrer.owner.map(callers.contains) == true || isBeside(file, referrer)
    }
  }

  private static func isBeside(_ file: String, _ referrer: Referrer) -> Bool {
    guard let directory = try? FilePath.real(FilePath.directory(of: referrer.path)) else {
      return false
    }
    return file.hasPrefix("/") && trimmed(FilePath.directory(of: file)) == trimmed(directory)
  }

  private static func trimmed(_ directory: String) -> Substring {
    directory.hasSuffix("/") ? directory.dropLast() : directory[...]
  }
}
