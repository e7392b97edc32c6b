import ArgumentParser
import DiskImages
import ImageJobs
import Synchronization

/// `qublk map`: where the data of a disk is, in qemu-img's words.
struct MapCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "map", abstract: "Show where the data of a disk is, through the backing chain.",
    discussion: """
      People see the ranges that have data, and where they are in which file. The JSON form has every \
      range, with the layer of the chain that it comes from. An attached image is asked of its daemon.
      """)

  @OptionGroup var format: FormatOption
  @OptionGroup var naming: ImageNaming
  @OptionGroup var share: ShareOption
  @Option(name: [.short, .long], help: "The first byte to look at.")
  var startOffset = ByteSize(bytes: 0)
  @Option(name: [.customShort("l"), .long], help: "The most bytes to look at. (default: all)")
  var maxLength: ByteSize?
  @Option(help: "The form of the answer: human or json.") var output = OutputFormat.human
  @Argument(help: ArgumentHelp("The image.", valueName: "file")) var name: String

  func validate() throws {
    try startOffset.requireFileSize("--start-offset")
    try maxLength?.requireFileSize("--max-length")
  }

  func run() throws {
    let image = try NamedImage(
      name, format: format.format, naming, .init(sharesByForce: share.forceShare))
    var job = MapJob(start: startOffset.bytes, length: maxLength?.bytes ?? .max)
    job.filename = image.options.path
    let printer = MapPrinter(output, start: startOffset.bytes)
    try printer.begin()
    _ = try JobRunner().run(job, on: image) { printer.take($0) }
    try printer.end(image.name)
  }
}

/// Prints ranges as they come.
private final class MapPrinter: Sendable {
  private struct State {
    var last: MapRange?
    /// Why nothing more is printed.
    var failure: ExitCode?
    /// There is data that has no place to show.
    var hasPlaceless = false
  }

  private let format: OutputFormat
  private let start: UInt64
  private let state = Mutex(State())

  init(_ format: OutputFormat, start: UInt64) { (self.format, self.start) = (format, start) }

  func begin() throws(ExitCode) {
    guard format == .human else { return }
    try ToolOutput.write("Offset          Length          Mapped to       File\n")
  }

  func take(_ range: MapRange) {
    state.withLock { state in
      guard state.failure == nil else { return }
      do throws(ExitCode) {
        switch format {
        case .human: try Self.show(range, &state)
        case .json:
          let first = state.last.map { Self.json($0) + ",\n" }
          try ToolOutput.write(first ?? "[")
          state.last = range
        }
      } catch { state.failure = error }
    }
  }

  private static func show(_ range: MapRange, _ state: inout State) throws(ExitCode) {
    guard range.isData, !range.isZero, !state.hasPlaceless else { return }
    guard let offset = range.offset else {
      state.hasPlaceless = true
      return
    }
    let columns = [range.start, range.length, offset].map { value in
      let text = value == 0 ? "0" : "0x" + String(value, radix: 16)
      return text + String(repeating: " ", count: max(0, 16 - text.utf8.count))
    }
    try ToolOutput.write(columns.joined() + (range.file ?? "") + "\n")
  }

  /// One range as qemu-img writes it.
  private static func json(_ range: MapRange) -> String {
    let offset = range.offset.map { ", \"offset\": \($0)" } ?? ""
    return "{ \"start\": \(range.start), \"length\": \(range.length), \"depth\": \(range.depth), "
      + "\"present\": \(range.isPresent), \"zero\": \(range.isZero), \"data\": \(range.isData), "
      + "\"compressed\": \(range.isCompressed)\(offset)}"
  }

  /// Prints what is left, and fails as qemu-img does where the table for people cannot show the data.
  func end(_ name: String) throws(ExitCode) {
    let state = state.withLock { $0 }
    if let failure = state.failure { throw failure }
    if format == .json {
      // Nothing was asked for: one range that says so.
      var nothing = MapRange(start: start, length: 0, isAllocated: false)
      nothing.isZero = false
      try ToolOutput.write(
        (state.last == nil ? "[" : "") + Self.json(state.last ?? nothing) + "]\n")
    }
    if state.hasPlaceless {
      ToolOutput.note(
        name,
        "the table cannot show encrypted or compressed clusters: see them with --output=json")
      throw ExitCode(1)
    }
  }
}
