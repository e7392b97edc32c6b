package import BlockCore
package import DiskImages

/// Why a command of `qublk io` was not carried out.
package enum IOFailure: Error {
  case unknownCommand(String)
  case noFile
  case fileOpen
  case argumentCount(Int, name: String, allowed: ClosedRange<Int>)
  case unknownOption(Character, IOCommandSpec)
  case missingValue(Character, IOCommandSpec)
  /// The operands are not what the command takes.
  case usage(IOCommandSpec)
  case lineTooLong
  case readOnly
  case notNumeric(String)
  case tooLarge(String)
  case badPattern(String)
  case badNumber(String)
  case noSuchHelp(String)
  case badPreallocation(String)
  case lengthLimit(String, unlessNoFallback: Bool)
  case vectorLimit(String)
  case vectorTotalLimit
  case verificationRange
  case exclusive(String)
  case needsZeroes(Character)
  case singleLength
  case unaligned(UInt64, String)
  case source(String, SourceProblem)
  /// A request failed.
  case request(String, Errno)
  /// A request failed, told at the end of the disk or in the engine.
  case disk(String)
  case open(DiskImageError)
  case openOption(OpeningError)
  case optionText(OptionTextError)
  case missing(IOMissing)
  case queryFailed(Errno)
  /// A read found other bytes than the pattern; the message has been printed already.
  case told

  /// What is wrong with the file that `-s` names.
  package enum SourceProblem {
    case system(Errno)
    case empty
  }
}

extension IOFailure {
  /// Has `body` say how to open a disk.
  package static func opening<T>(
    _ body: () throws(OpeningError) -> T
  ) throws(IOFailure) -> T {
    do throws(OpeningError) { return try body() } catch { throw .openOption(error) }
  }
}

/// What this build cannot do.
package enum IOMissing {
  case faultInjection
  case zones
}

extension IOFailure {
  /// The lines for standard output and for standard error, where the texts that scripts read are
  /// those of qemu-io.
  package var lines: (output: String?, errors: String?) {
    switch self {
    case .unknownOption(let letter, let command):
      (command.usageLine, "\(command.name): invalid option -- '\(letter)'")
    case .missingValue(let letter, let command):
      (command.usageLine, "\(command.name): option requires an argument -- '\(letter)'")
    case .usage(let command): (command.usageLine, nil)
    case .unknownCommand, .noFile, .fileOpen, .argumentCount, .lineTooLong, .readOnly, .source,
      .open, .openOption, .optionText, .disk, .missing, .badPreallocation:
      (nil, text)
    case .told: (nil, nil)
    default: (text, nil)
    }
  }

  private var text: String {
    switch self {
    case .unknownCommand(let name): "command \"\(name)\" not found"
    case .noFile: "no file open, try 'help open'"
    case .fileOpen: "qublk: file open already, try 'help close'"
    case .argumentCount(let found, let name, let allowed):
      "bad argument count \(found) to \(name), expected \(Self.text(allowed))"
    case .lineTooLong: "qublk: standard input: a line is longer than \(IOLines.limit) bytes"
    case .readOnly: "qublk: Block node is read-only"
    case .notNumeric(let word):
      "Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- \(word)"
    case .tooLarge(let word): "Parsing error: argument too large -- \(word)"
    case .badPattern(let word): "\(word) is not a valid pattern byte"
    case .badNumber(let word): "\(word) is not a valid number"
    case .badPreallocation(let word): "qublk: Invalid preallocation mode '\(word)'"
    case .noSuchHelp(let name): "command \(name) not found"
    case .lengthLimit(let word, let unlessNoFallback):
      "length cannot exceed \(IOLimit.length)\(unlessNoFallback ? " without -n" : ""), given \(word)"
    case .vectorLimit(let word): "Argument '\(word)' exceeds maximum size \(IOLimit.length)"
    case .vectorTotalLimit:
      "The total number of bytes exceed the maximum size \(IOLimit.length)"
    case .verificationRange: "pattern verification range exceeds end of read data"
    case .exclusive(let text): text
    case .needsZeroes(let letter): "-\(letter) requires -z to be specified"
    case .singleLength: "-z supports only a single length parameter"
    case .unaligned(let value, let name):
      "\(value) is not a sector-aligned value for '\(name)'"
    case .source(let path, .empty): "\(path): file is empty"
    case .source(let path, .system(let errno)): "\(path): \(errno.systemText)"
    case .request(let name, let errno): "\(name) failed: \(errno.systemText)"
    case .disk(let text): "qublk: \(text)"
    case .open(let error): "qublk: \(error.message)"
    case .openOption(let error): "qublk: \(error.text)"
    case .optionText(let error): "qublk: \(error.message)"
    case .missing(let feature): "qublk: \(feature.text)"
    case .queryFailed(let errno): "Failed to get allocation status: \(errno.systemText)"
    case .told, .unknownOption, .missingValue, .usage: ""
    }
  }

  private static func text(_ allowed: ClosedRange<Int>) -> String {
    switch (allowed.lowerBound, allowed.upperBound) {
    case (let least, Int.max): "at least \(least) arguments"
    case (let least, let most) where least == most: "\(least) arguments"
    case (let least, let most): "between \(least) and \(most) arguments"
    }
  }
}

extension IOMissing {
  fileprivate var text: String {
    switch self {
    case .faultInjection:
      "break, wait_break, resume and remove_break need fault injection, which only the tests have"
    case .zones: "zoned devices are not supported"
    }
  }
}
