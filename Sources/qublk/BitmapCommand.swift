import ArgumentParser
import BlockCore
import Daemon
import DiskImages
import ImageJobs
import QCOW2Engine
import QCOW2Format
import QCOW2Tools

/// `qublk bitmap`: persistent bitmaps come, go and change, in qemu-img's language.
struct BitmapCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "bitmap", abstract: "Change the persistent bitmaps of a qcow2 image.",
    usage: """
      qublk bitmap [-f FMT | --image-opts]
        ( --add [-g SIZE] | --remove | --remove-all | --clear | --enable
        | --disable | --merge SOURCE [-b SRC_FILE [-F SRC_FMT]] ).. [--object OBJDEF] FILE [BITMAP]
      """,
    discussion: """
      Several actions are carried out in their order. An image that a device of qublk serves is \
      changed while it is in use: every write that begins after the command has ended is in the \
      bitmaps that are enabled then.
      """)

  /// What needs no value.
  enum Plain: String, EnumerableFlag {
    case add, remove, removeAll, clear, enable, disable

    static func name(for value: Plain) -> NameSpecification { .long }
    static func help(for value: Plain) -> ArgumentHelp? {
      switch value {
      case .add: "Add BITMAP, which follows all changes from then on."
      case .remove: "Remove BITMAP, also if it cannot be trusted any more."
      case .removeAll: "Remove all bitmaps."
      case .clear: "Take all bits of BITMAP away."
      case .enable: "Have BITMAP follow changes again."
      case .disable: "Have BITMAP follow no changes any more."
      }
    }

    var action: BitmapJob.Action {
      switch self {
      case .add: .add(granularity: nil)
      case .remove: .remove
      case .removeAll: .removeAll
      case .clear: .clear
      case .enable: .enable
      case .disable: .disable
      }
    }
  }

  @Flag var flags: [Plain] = []
  @Option(help: ArgumentHelp("Add the bits of this bitmap to BITMAP.", valueName: "source"))
  var merge: [String] = []
  @Option(
    name: [.short, .long],
    help: ArgumentHelp(
      "The bytes that a bit of the new bitmap stands for: a power of two from 512 to 2G.",
      valueName: "size"))
  var granularity: String?
  @Option(
    name: [.customShort("b"), .long],
    help: ArgumentHelp("The image that has the bitmaps of --merge.", valueName: "src_file"))
  var sourceFile: String?
  @Option(
    name: [.customShort("F"), .long],
    help: ArgumentHelp("The format of that image: qcow2 is the only one.", valueName: "src_fmt"))
  var sourceFormat: String?
  @OptionGroup var format: FormatOption
  @OptionGroup var naming: ImageNaming
  @Argument(help: ArgumentHelp("The image, and the name of the bitmap.", valueName: "file"))
  var operands: [String] = []

  func run() throws {
    let actions = try checkedActions()
    var access = NamedImage.Access()
    access.isReadOnly = false
    var image = try NamedImage(operands[0], format: format.format, naming, access)
    guard image.format == .qcow2 else {
      ToolOutput.note(
        image.name,
        "a \(image.format.rawValue) disk has no persistent bitmaps: Operation not supported")
      throw ExitCode(1)
    }
    // A directory that breaks the format is not given up by a command that is to change it.
    image.options.engine.requiresBitmaps = true
    _ = try JobRunner().run(
      BitmapJob(actions, of: operands.count > 1 ? operands[1] : "", source: source()), on: image)
  }

  private func source() throws -> BitmapJob.Source? {
    guard let sourceFile else { return nil }
    if let sourceFormat, sourceFormat != "qcow2" {
      throw Self.refusal("format \"\(sourceFormat)\" has no persistent bitmaps, only qcow2 has")
    }
    do throws(Errno) {
      return BitmapJob.Source(
        path: try FilePath.absolute(FileReference.commandLinePath(sourceFile)))
    } catch { throw CommandError.file(sourceFile, .open, error) }
  }

  // MARK: Usage, in qemu-img's words and order

  private func checkedActions() throws -> [BitmapJob.Action] {
    if flags.isEmpty && merge.isEmpty {
      throw Self.refusal(
        "Need at least one of --add, --remove, --remove-all, --clear, --enable, --disable, or "
          + "--merge")
    }
    if granularity != nil && !flags.contains(.add) {
      throw Self.refusal("granularity only supported with --add")
    }
    if sourceFile != nil && merge.isEmpty {
      throw Self.refusal("Merge bitmap source file only supported with --merge")
    }
    if sourceFormat != nil && sourceFile == nil {
      throw Self.refusal("-F only supported with -b")
    }
    let needsBitmap = !merge.isEmpty || flags.contains { $0 != .removeAll }
    guard operands.count == (needsBitmap ? 2 : 1) else {
      throw Self.refusal(needsBitmap ? "Expecting filename and bitmap name" : "Expecting filename")
    }
    let size = try granularityBytes()
    return actions.map { action in
      if case .add = action { return .add(granularity: size) }
      return action
    }
  }

  /// Nil for the standard, which 0 stands for, too.
  private func granularityBytes() throws -> UInt64? {
    guard let granularity else { return nil }
    guard let size = SizeText.parse(granularity) else {
      throw Self.refusal("Invalid granularity specified: '\(granularity)'")
    }
    return size == 0 ? nil : size
  }

  /// All actions in the order of the command line, which the parser does not keep between flags and
  /// options.
  private var actions: [BitmapJob.Action] {
    let all = flags.map(\.action) + merge.map { .merge($0) }
    guard let words = try? GetoptWords(ProgramArguments.all(), CommandTree()).words else {
      return all
    }
    let ordered = Self.actions(words)
    return ordered.count == all.count ? ordered : all
  }

  /// The actions that words stand for, as ``GetoptWords`` gives them.
  static func actions(_ words: [String]) -> [BitmapJob.Action] {
    words.prefix { $0 != "--" }.compactMap { word in
      if word.hasPrefix("--merge=") { return .merge(String(word.dropFirst("--merge=".count))) }
      guard word.hasPrefix("--") else { return nil }
      return Plain.allCases.map(\.action).first { $0.name == word.dropFirst(2) }
    }
  }

  private static func refusal(_ text: String) -> ExitCode {
    ToolOutput.complain(text)
    return ExitCode(1)
  }
}
