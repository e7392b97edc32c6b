import JSON
import TestTools
import Testing

/// What may differ between the two answers.
struct Likeness {
  /// Members of JSON objects that are not compared, at any depth.
  var ignoring: Set<String> = []
  /// Both outputs are changed so before they are compared.
  var normalized: (String) -> String = { $0 }
  /// Whether the outputs are compared at all.
  var comparesOutput = true
  /// Whether what the two wrote to standard error is compared, without the program's name.
  var comparesErrors = false
  /// Whether the changed images must be sound: not where the command makes none.
  var checksImages = true
  /// The qcow2 images that are looked at after a change; those of them that are there.
  var images = [Sample.name]
}

/// The same operation, carried out by both programs.
struct Twin {
  let words: [String]
  let ours: Outcome
  let theirs: Outcome
  /// Where each worked; the same directory if nothing was to change.
  let ourSample: Sample
  let theirSample: Sample

  /// Runs a command that changes nothing with both programs on the same files, and compares.
  @discardableResult
  static func read(
    _ words: [String], _ sample: Sample, _ likeness: Likeness = Likeness(),
    at place: SourceLocation = #_sourceLocation
  ) throws -> Twin {
    let twin = try run(words, sample, sample)
    twin.compare(likeness, place)
    return twin
  }

  /// Runs a command with both programs, each on a copy of the files; compares answers and images.
  @discardableResult
  static func change(
    _ words: [String], _ sample: Sample, _ likeness: Likeness = Likeness(),
    at place: SourceLocation = #_sourceLocation
  ) throws -> Twin {
    let twin = try run(words, try sample.copy(), try sample.copy())
    twin.compare(likeness, place)
    try twin.compareImages(likeness, place)
    return twin
  }

  /// Goes on after a change: runs the next command on the same two copies.
  @discardableResult
  func next(
    _ words: [String], _ likeness: Likeness = Likeness(),
    at place: SourceLocation = #_sourceLocation
  ) throws -> Twin {
    let twin = try Self.run(words, ourSample, theirSample)
    twin.compare(likeness, place)
    try twin.compareImages(likeness, place)
    return twin
  }

  private static func run(_ words: [String], _ ours: Sample, _ theirs: Sample) throws -> Twin {
    TwinCount.note(words.first ?? "")
    return Twin(
      words: words, ours: try Tools.qublk(words, in: ours.path),
      theirs: try Tools.qemu("qemu-img", words, in: theirs.path), ourSample: ours,
      theirSample: theirs)
  }

  private var title: String { "\(words.joined(separator: " ")) [\(ourSample)]" }

  private func compare(_ likeness: Likeness, _ place: SourceLocation) {
    guard ours.status == theirs.status else {
      Issue.record(
        """
        \(title): status \(ours.status), qemu-img's \(theirs.status)
        \(Self.shown(ours))
        --- qemu-img:
        \(Self.shown(theirs))
        """, sourceLocation: place)
      return
    }
    if likeness.comparesOutput, !isAlike(likeness) {
      Issue.record(
        """
        \(title):
        \(ours.output.suffix(3000))
        --- qemu-img:
        \(theirs.output.suffix(3000))
        """, sourceLocation: place)
    }
    if likeness.comparesErrors, Self.named(ours.errors) != Self.named(theirs.errors) {
      Issue.record(
        "\(title):\n\(ours.errors)\n--- qemu-img:\n\(theirs.errors)", sourceLocation: place)
    }
  }

  private static func shown(_ outcome: Outcome) -> String {
    String(outcome.output.suffix(1500) + outcome.errors.suffix(1500))
  }

  private static func named(_ text: String) -> String {
    text.split(separator: "\n").map { line in
      for prefix in ["qublk: ", "qemu-img: "] where line.hasPrefix(prefix) {
        return String(line.dropFirst(prefix.count))
      }
      return String(line)
    }.joined(separator: "\n")
  }

  private func isAlike(_ likeness: Likeness) -> Bool {
    let (one, other) = (likeness.normalized(ours.output), likeness.normalized(theirs.output))
    if one == other { return true }
    guard words.contains(where: { $0.hasSuffix("json") }), let one = JSONParser.parse(one),
      let other = JSONParser.parse(other)
    else { return false }
    return one.comparable(without: likeness.ignoring)
      == other.comparable(without: likeness.ignoring)
  }

  // MARK: After a change

  private func compareImages(_ likeness: Likeness, _ place: SourceLocation) throws {
    guard likeness.checksImages else { return }
    for name in likeness.images {
      let words = ourSample.named.map { $0.replacingName(by: name) }
      let theirCheck = try Tools.qemu("qemu-img", ["check"] + words, in: ourSample.path)
      let before = try Tools.qemu("qemu-img", ["check"] + words, in: theirSample.path)
      #expect(
        theirCheck.status == before.status || theirCheck.status == 0,
        "\(title): qemu-img check \(name): \(Self.shown(theirCheck))", sourceLocation: place)
      let ourCheck = try Tools.qublk(["check", name], in: ourSample.path)
      #expect(
        ourCheck.status == before.status || ourCheck.status == 0,
        "\(title): qublk check \(name): \(Self.shown(ourCheck))", sourceLocation: place)
      if let difference = try difference(name) {
        Issue.record("\(title): \(name) differs: \(difference)", sourceLocation: place)
      }
    }
  }

  /// How what the guest sees of our image differs from qemu-img's; nil if it does not.
  private func difference(_ name: String) throws -> String? {
    func options(_ sample: Sample) -> String {
      sample.options.replacingName(by: "\(sample.path)/\(name)")
    }
    let result = try Tools.qemu(
      "qemu-img",
      ["compare"] + ourSample.object
        + ["--image-opts", options(ourSample), options(theirSample)], in: ourSample.path)
    return result.succeeded ? nil : Self.shown(result)
  }
}

extension String {
  /// The word with another image's name in place of the sample's.
  fileprivate func replacingName(by name: String) -> String {
    if self == Sample.name { return name }
    guard let range = self.range(of: "=\(Sample.name)") else { return self }
    return self[..<range.lowerBound] + "=\(name)" + self[range.upperBound...]
  }

  private func range(of text: String) -> Range<Index>? {
    var start = startIndex
    while start < endIndex {
      if self[start...].hasPrefix(text) { return start..<index(start, offsetBy: text.count) }
      start = index(after: start)
    }
    return nil
  }
}

extension JSONValue {
  /// The value with its members in order, without those that are not compared.
  func comparable(without names: Set<String>) -> JSONValue {
    switch self {
    case .object(let members):
      .object(
        members.filter { !names.contains($0.name) }.sorted { $0.name < $1.name }
          .map { .init($0.name, $0.value.comparable(without: names)) })
    case .array(let values): .array(values.map { $0.comparable(without: names) })
    case .integer(let value) where value >= 0: .unsigned(UInt64(value))
    default: self
    }
  }
}
