import TestTools
import Testing

/// The same commands for qemu-io and for `qublk io`, each on an image of its own.
final class IOTwins {
  let directory: TemporaryDirectory
  let format: String
  private let paths: (qemu: String, qublk: String)

  /// Makes two equal images with `qemu-img create` and these arguments after the path.
  init(format: String = "qcow2", _ arguments: [String] = ["64M"]) throws {
    directory = try TemporaryDirectory()
    self.format = format
    paths = ("\(directory.path)/qemu", "\(directory.path)/qublk")
    for path in [paths.qemu, paths.qublk] {
      let made = try Subprocess(
        "qemu-img", ["create", "-q", "-f", format] + Self.arguments(arguments, path)
      ).finish()
      try #require(made.status == 0, "\(made.errors)")
    }
  }

  /// Options come before the path, the size after it.
  private static func arguments(_ arguments: [String], _ path: String) -> [String] {
    arguments.dropLast() + [path] + arguments.suffix(1)
  }

  /// Runs both and expects equal texts, apart from times and from what is free to differ.
  func expectAlike(
    _ commands: [String], options: [String] = [],
    sourceLocation: SourceLocation = #_sourceLocation
  ) throws {
    let script = commands.flatMap { ["-c", $0] }
    let common = ["-f", format] + options + script
    let theirs = try Subprocess("qemu-io", common + [paths.qemu]).finish()
    let ours = try Subprocess(qublkPath(), ["io"] + common + [paths.qublk]).finish()
    let what = "\(commands) \(options)"
    #expect(ours.status == theirs.status, "\(what)", sourceLocation: sourceLocation)
    for (ours, theirs) in [(ours.output, theirs.output), (ours.errors, theirs.errors)] {
      let (ours, theirs) = IOText.different(ours, theirs)
      #expect(ours == theirs, "\(what)", sourceLocation: sourceLocation)
    }
  }

  /// Expects that both images are sound and read alike.
  func expectEqualImages(sourceLocation: SourceLocation = #_sourceLocation) throws {
    let compared = try run(
      "qemu-img", "compare", "-f", format, "-F", format, paths.qemu, paths.qublk)
    #expect(compared.status == 0, "\(compared.output)", sourceLocation: sourceLocation)
    if format != "qcow2" { return }
    let checked = try run("qemu-img", "check", "-q", paths.qublk)
    #expect(
      checked.status == 0, "\(checked.output)\(checked.errors)", sourceLocation: sourceLocation)
  }
}

enum IOText {
  /// The lines in which two texts differ, but for times, rates, the program's name and the words of
  /// explanations; to the end if one has more lines.
  static func different(_ one: String, _ other: String) -> ([String], [String]) {
    let lines = one.split(separator: "\n", omittingEmptySubsequences: false)
    let others = other.split(separator: "\n", omittingEmptySubsequences: false)
    let sameCount = lines.count == others.count
    var (left, right): ([String], [String]) = ([], [])
    for (line, other) in zip(lines, others) where !sameCount || line != other {
      left.append(filtered(line))
      right.append(filtered(other))
    }
    left += lines.dropFirst(others.count).map(filtered)
    right += others.dropFirst(lines.count).map(filtered)
    return (left, right)
  }

  /// A line without times, rates, the program's name and the words of explanations.
  private static func filtered(_ line: Substring) -> String {
    var line = String(line).replacing("qemu-io: ", with: "").replacing("qublk: ", with: "")
    if let end = line.firstRange(of: " ops;") { line = String(line[..<end.upperBound]) }
    if let end = line.firstRange(of: ",1,0:00:") { line = String(line[..<end.upperBound]) }
    if line.contains(" -- "), let end = line.firstIndex(of: "["), !line.hasPrefix("Parsing") {
      line = String(line[..<end])
    }
    return line
  }
}
