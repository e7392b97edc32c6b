import Glibc
import JSON
import TestTools
import Testing

/// A conversion by both programs, and what is looked at afterwards.
enum Conversion {
  /// What qemu-img tells of an image that depends on how, not on what, was written.
  private static let changing: Set<String> = [
    "actual-size", "filename", "length", "data-file", "virtual-size", "image-end-offset",
    "full-backing-filename",
  ]

  /// Converts with both programs, each in a copy of the sample's directory, and compares the targets.
  ///
  /// They must read the same, by both programs and in both orders, have the same size, be the same for
  /// `info`, and sound for `check`. The words are what follows "convert", but for the target.
  @discardableResult
  static func run(
    _ words: [String], _ sample: Sample, to format: String,
    at place: SourceLocation = #_sourceLocation
  ) throws -> Twin {
    try run(["convert"] + words + ["target"], sample, target: format, at: place)
  }

  /// The same for a whole command line whose target is the file "target".
  @discardableResult
  static func run(
    _ words: [String], _ sample: Sample, target format: String,
    at place: SourceLocation = #_sourceLocation
  ) throws -> Twin {
    let twin = try Twin.change(
      words, sample, Likeness(comparesOutput: false, checksImages: false), at: place)
    let title = "\(words.joined(separator: " ")) [\(sample)]"
    guard twin.theirs.succeeded, twin.ours.succeeded else { return twin }
    if words.contains(where: { $0.contains("data_file") }) { return try rawTwin(twin, at: place) }
    let (ours, theirs) = ("\(twin.ourSample.path)/target", "\(twin.theirSample.path)/target")
    for (one, other) in [(ours, theirs), (theirs, ours)] {
      let words = ["compare", "-f", format, "-F", format, one, other]
      let result = try Tools.qemu("qemu-img", words, in: sample.path)
      #expect(
        result.output == "Images are identical.\n", "\(title): \(result.output)\(result.errors)",
        sourceLocation: place)
      let own = try Tools.qublk(words, in: sample.path)
      #expect(
        own.output == result.output, "\(title): \(own.output)\(own.errors)",
        sourceLocation: place)
    }
    if format == "qcow2" {
      let check = try Tools.qemu("qemu-img", ["check", "-q", ours], in: twin.ourSample.path)
      #expect(
        check.status == 0, "\(title): \(check.output)\(check.errors)", sourceLocation: place)
    }
    let (one, other) = (try info(ours, format, twin), try info(theirs, format, twin))
    #expect(one == other, "\(title)", sourceLocation: place)
    return twin
  }

  /// Data files are found from the current directory alone, so each image is read in its own.
  private static func rawTwin(_ twin: Twin, at place: SourceLocation) throws -> Twin {
    for sample in [twin.ourSample, twin.theirSample] {
      try Tools.mustQEMU(
        "qemu-img", ["convert", "-O", "raw", "target", "target.raw"], in: sample.path)
      try Tools.mustQEMU("qemu-img", ["check", "-q", "target"], in: sample.path)
    }
    let (ours, theirs) = (
      "\(twin.ourSample.path)/target.raw", "\(twin.theirSample.path)/target.raw"
    )
    let same = try Tools.qemu("qemu-img", ["compare", ours, theirs], in: twin.ourSample.path)
    #expect(same.status == 0, "\(twin.words): \(same.output)\(same.errors)", sourceLocation: place)
    return twin
  }

  private static func info(_ path: String, _ format: String, _ twin: Twin) throws -> JSONValue? {
    let text = try Tools.mustQEMU(
      "qemu-img", ["info", "-f", format, "--output=json", path], in: twin.ourSample.path)
    guard let value = JSONParser.parse(text) else { return nil }
    let size = value["virtual-size"] ?? .null
    return .object([
      .init("size", size), .init("rest", value.comparable(without: changing)),
    ])
  }
}

/// Whether there is a file of this name.
func fileExists(_ path: String) -> Bool { access(path, F_OK) == 0 }
