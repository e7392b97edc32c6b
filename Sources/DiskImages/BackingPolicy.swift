package import BlockCore

/// Which of the files that images refer to may be opened: backing files and external data files.
///
/// What the user names on the command line is not asked about. The default is QEMU's, any file: an
/// image is trusted as much as the command to attach it, and guests cannot write headers. For
/// images from elsewhere there is the rest [SEC-1, SEC-3].
package struct BackingPolicy: Sendable, Equatable {
  package enum Rule: Sendable, Equatable {
    case any
    /// Files in the directory of the path by which the referring image was opened.
    case sameDirectory
    /// The file or directory with this real path, and everything below it.
    case below(String)
  }

  /// A file is allowed if one of these allows it.
  package var rules: [Rule]

  package init(rules: [Rule]) { self.rules = rules }

  package static let any = Self(rules: [.any])
  package static let deny = Self(rules: [])
  package static let sameDirectory = Self(rules: [.sameDirectory])

  /// Reads the values of `--backing-policy`.
  ///
  /// One `deny`, or any number of `any`, `same-directory` and paths; none at all means any. A path
  /// with the name of a word is written `./any`.
  ///
  /// - Throws: The value that is wrong, and why.
  package init(parsing values: [String]) throws(BadValue) {
    if values.isEmpty {
      self = .any
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

  /// Whether the file with real path `file` may be opened for the image at `referrer`.
  func allows(_ file: String, for referrer: String) -> Bool {
    rules.contains { Self.allows($0, file, referrer) }
  }

  private static func allows(_ rule: Rule, _ file: String, _ referrer: String) -> Bool {
    switch rule {
    case .any: return true
    case .sameDirectory:
      guard let directory = try? FilePath.real(FilePath.directory(of: referrer)) else {
        return false
      }
      return file.hasPrefix("/") && trimmed(FilePath.directory(of: file)) == trimmed(directory)
    case .below(let path):
      return file == path || file.hasPrefix(path == "/" ? path : path + "/")
    }
  }

  private static func trimmed(_ directory: String) -> Substring {
    directory.hasSuffix("/") ? directory.dropLast() : directory[...]
  }
}
