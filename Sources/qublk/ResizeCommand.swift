import ArgumentParser
import Daemon
import DiskImages
import ImageJobs
import QCOW2Engine
import QCOW2Tools

/// `qublk resize`: another virtual size for an image, also while a device shows it.
struct ResizeCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "resize", abstract: "Change the virtual size of an image.",
    discussion: """
      What is added reads as zeros. An image that is attached can grow: its device shows the new size at \
      once (Linux 6.16 or later), and a file system on it can then be grown without unmounting it. A \
      partition table is not changed.
      """)

  @OptionGroup var format: FormatOption
  @OptionGroup var naming: ImageNaming
  @OptionGroup var quiet: QuietOption
  @Option(
    help: "What the added part gets in advance: off, metadata, falloc or full (raw: not metadata).")
  var preallocation = "off"
  @Flag(help: "Allow the image to become smaller. What is cut off is lost.") var shrink = false
  @Argument(help: ArgumentHelp("The image.", valueName: "file")) var name: String
  @Argument(
    help: """
      The new size, or +SIZE or -SIZE for so much more or less than now; in bytes, or with suffix b, k, M, \
      G, T, P or E.
      """)
  var size: String

  func run() throws {
    let job = try job()
    let image = try NamedImage(
      name, format: format.format, naming, NamedImage.Access(isReadOnly: false))
    if image.isProbed, image.format == .raw {
      ToolOutput.note(name, "taken as a raw image by its first bytes: \"-f raw\" says so for sure")
    }
    _ = try JobRunner(isQuiet: quiet.quiet).run(job, on: image)
    if !quiet.quiet { try ToolOutput.write("Image resized.\n") }
  }

  private func job() throws(ExitCode) -> ResizeJob {
    guard let preallocation = Preallocation(rawValue: preallocation) else {
      throw fail("Invalid preallocation mode '\(preallocation)'")
    }
    return ResizeJob(try amount(), mayShrink: shrink, preallocation: preallocation)
  }

  private func amount() throws(ExitCode) -> SizeChange.Amount {
    let sign = size.first.flatMap { "+-".contains($0) ? $0 : nil }
    guard let bytes = SizeText.parse(String(size.dropFirst(sign == nil ? 0 : 1))) else {
      throw fail(
        "\"\(size)\" is no size: Parameter 'size' expects a non-negative number below 2^64, with an "
          + "optional suffix b, k, M, G, T, P or E")
    }
    switch sign {
    case "+": return .more(bytes)
    case "-": return .less(bytes)
    default:
      if bytes == 0 { throw fail("New image size must be positive") }
      return .exactly(bytes)
    }
  }

  private func fail(_ text: String) -> ExitCode {
    ToolOutput.note(name, text)
    return ExitCode(1)
  }
}
