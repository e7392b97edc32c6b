import ArgumentParser
import DiskImages
import ImageJobs
import QCOW2Tools

/// `qublk dd`: copies a part of an image into a new one, in the words of dd(1) that qemu-img has.
struct DDCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "dd", abstract: "Copy an image, or a part of it, in the words of dd.",
    discussion: """
      Words: if=FILE and of=FILE; bs=SIZE, the bytes of a block (512); count=N, the blocks of the input \
      up to which it is copied; skip=N, the blocks that are left out at its start, which count among \
      those of count. What the output held is lost.
      """)

  @OptionGroup var format: FormatOption
  @Option(
    name: [.customShort("O"), .customLong("output-format")],
    help: "The format of the output: qcow2 or raw. (default: raw)")
  var outputFormat: String?
  @OptionGroup var naming: ImageNaming
  @OptionGroup var share: ShareOption
  @Argument(help: ArgumentHelp("The words, NAME=VALUE.", valueName: "word"))
  var words: [String] = []

  func run() throws {
    let operands: DDOperands
    do throws(OpeningError) { operands = try DDOperands(words) } catch {
      throw CopyRun.refuse("dd", error.text)
    }
    var access = NamedImage.Access()
    access.sharesByForce = share.forceShare
    let source = try NamedImage(operands.input, format: format.format, naming, access)
    let request = TargetRequest(name: operands.output, format: outputFormat)
    let target = try request.target(naming)
    var job = ConvertJob()
    job.targetIsZero = target.format == .qcow2 || !target.isDevice
    job.skip = operands.skipped
    job.length = operands.length
    job.cutsEnd = true
    try CopyRun(isQuiet: true).run(job, from: [(source.format, source.options)], to: target)
  }
}

/// The words of a `dd` command.
struct DDOperands {
  let input: String
  let output: String
  /// In bytes.
  var blockSize: UInt64 = 512
  /// In blocks.
  var count: UInt64?
  var skip: UInt64 = 0

  /// - Throws: In qemu-img's words.
  init(_ words: [String]) throws(OpeningError) {
    var names: [String: String] = [:]
    for word in words {
      let sign = word.firstIndex(of: "=") ?? word.endIndex
      let name = String(word[..<sign])
      guard ["if", "of", "bs", "count", "skip"].contains(name), sign < word.endIndex else {
        throw OpeningError("unrecognized operand \(name)")
      }
      names[name] = String(word[word.index(after: sign)...])
    }
    if let bs = names["bs"] { blockSize = try Self.number("bs", bs, 1...2_147_483_647) }
    if let blocks = names["count"] { count = try Self.number("count", blocks, 0...Self.most) }
    if let blocks = names["skip"] { skip = try Self.number("skip", blocks, 0...Self.most) }
    guard let input = names["if"], let output = names["of"] else {
      throw OpeningError("Must specify both input and output files")
    }
    self.input = input
    self.output = output
  }

  private static let most = UInt64(Int64.max)

  private static func number(
    _ name: String, _ text: String, _ range: ClosedRange<UInt64>
  ) throws(OpeningError) -> UInt64 {
    guard let value = SizeText.parse(text) else {
      if text.hasPrefix("-") { throw Self.range(name, range) }
      throw OpeningError("Invalid \(name) specified: '\(text)'")
    }
    guard range.contains(value) else { throw Self.range(name, range) }
    return value
  }

  private static func range(_ name: String, _ range: ClosedRange<UInt64>) -> OpeningError {
    OpeningError(
      "Invalid \(name) specified. Must be between \(range.lowerBound) and \(range.upperBound).")
  }

  /// The bytes left out at the start.
  var skipped: UInt64 { Self.product(skip, blockSize) }

  /// The bytes of the input up to its end or up to `count`, from its start on.
  var length: UInt64 { count.map { Self.product($0, blockSize) } ?? .max }

  private static func product(_ one: UInt64, _ other: UInt64) -> UInt64 {
    let (product, overflow) = one.multipliedReportingOverflow(by: other)
    return overflow ? .max : product
  }
}
