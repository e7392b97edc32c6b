import ArgumentParser
import Daemon
import DiskImages
import ImageJobs
import JSON
import QCOW2Engine
import QCOW2Tools

/// `qublk measure`: the room that a new image needs, in qemu-img's words.
struct MeasureCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "measure", abstract: "Tell how large a new image, or a copy of one, becomes.",
    discussion: """
      Either --size or an image says what is to be stored. The answer has the bytes for that, the bytes \
      when every cluster has data, and of an image as source the bytes for its bitmaps. An attached \
      image is asked of its daemon.
      """)

  @OptionGroup var format: FormatOption
  @OptionGroup var naming: ImageNaming
  @OptionGroup var share: ShareOption
  @Option(
    name: [.customShort("O"), .customLong("target-format")],
    help: "The format of the new image: raw or qcow2.")
  var target = "raw"
  @Option(
    name: [.customShort("o"), .customLong("options")],
    help: "Options of the new image, as those of create.")
  var options: [String] = []
  @Option(
    name: [.customShort("l"), .long],
    help: """
      Take the internal snapshot with this ID or name as source; also snapshot.id=ID, \
      snapshot.name=NAME.
      """)
  var snapshot: String?
  @Option(name: [.short, .long], help: "The size of a new, empty disk.") var size: ByteSize?
  @Option(help: "The form of the answer: human or json.") var output = OutputFormat.human
  @Argument(help: ArgumentHelp("The image that is to be copied.", valueName: "file"))
  var name: String?

  func validate() throws { try size?.requireFileSize("--size") }

  func run() throws {
    guard (name == nil) != (size == nil) else {
      throw ValidationError(
        name == nil
          ? "nothing to measure: give --size or the name of one image"
          : "--size and the name of an image exclude each other")
    }
    let measured = try measured()
    try ToolOutput.write(
      output == .json ? measured.json.qemuText + "\n" : measured.humanText)
  }

  private func measured() throws -> MeasuredSize {
    switch target {
    case "raw":
      do throws(ToolError) { _ = try RawCreateOptions(lists: options, copySize: 0) } catch {
        throw ToolOutput.fail(title, error)
      }
      return MeasuredSize(rawSize: try source(MeasureJob(clusterBits: 16, countsData: false)).size)
    case "qcow2": return try qcow2()
    default:
      ToolOutput.note(title, "-O is \"\(target)\", expected raw or qcow2")
      throw ExitCode(1)
    }
  }

  private func qcow2() throws -> MeasuredSize {
    let options = try parsedOptions()
    // A backing file may have all of the data or nothing of it: nobody knows here.
    let source = try source(
      MeasureJob(clusterBits: options.clusterBits, countsData: options.backingFile == nil))
    do throws(OptionError) {
      var measured = try MeasuredSize(
        options, size: source.size, data: name == nil ? 0 : source.data)
      if options.version >= 3 { measured.bitmaps = source.bitmaps }
      return measured
    } catch { throw ToolOutput.fail(title, .option(error)) }
  }

  private func parsedOptions() throws -> CreateOptions {
    do throws(OptionError) { return try CreateOptions(measuring: options) } catch {
      throw ToolOutput.fail(title, .option(error))
    }
  }

  /// What error lines call the measured thing.
  private var title: String { name ?? "measure" }

  /// What is to be stored.
  private func source(_ job: MeasureJob) throws -> MeasuredSource {
    guard let name else {
      return MeasuredSource(size: ((size?.bytes ?? 0) &+ 511) & ~511)
    }
    var image = try NamedImage(
      name, format: format.format, naming, .init(sharesByForce: share.forceShare))
    var runner = JobRunner()
    if let snapshot {
      image.options.engine.snapshot = SnapshotSelector(parsing: snapshot)
      // Nobody changes what a snapshot has: it is read beside a daemon.
      if ServedImage.find(image.options.path) != nil {
        runner.asksDaemon = false
        image.options.locks = .none
      }
    }
    return try runner.run(job, on: image)
  }
}
