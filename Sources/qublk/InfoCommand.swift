import ArgumentParser
import CPlatform
import DiskImages
import Glibc
import HostFiles
import ImageJobs
import JSON
import QCOW2Tools

/// `qublk info`: what an image is, in qemu-img's words.
struct InfoCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "info", abstract: "Show what an image is.",
    discussion: """
      Neither a data file nor, without --backing-chain, a backing file is opened. An attached image is \
      asked of its daemon.
      """)

  @OptionGroup var format: FormatOption
  @OptionGroup var naming: ImageNaming
  @OptionGroup var share: ShareOption
  @OptionGroup var cache: CacheOption
  @Flag(help: "Show the backing files too, from the top down.") var backingChain = false
  @Flag(help: "Show what the host asks of transfers.") var limits = false
  @Option(help: "The form of the answer: human or json.") var output = OutputFormat.human
  @Argument(help: ArgumentHelp("The image.", valueName: "file")) var name: String

  func run() throws {
    let reports = try reports()
    switch output {
    case .json:
      let objects = reports.map(\.json)
      let value = backingChain ? JSONValue.array(objects) : objects[0]
      try ToolOutput.write(value.qemuText + "\n")
    case .human: try ToolOutput.write(reports.map(\.humanText).joined(separator: "\n"))
    }
  }

  /// Of the image and, if they are asked for, of its backing files; never empty.
  private func reports() throws -> [ImageInfoReport] {
    let access = NamedImage.Access(sharesByForce: share.forceShare, cache: cache.cache)
    let image = try NamedImage(name, format: format.format, naming, access)
    var reports = [try report(image)]
    var seen: Set<String> = [image.options.path]
    while backingChain, let (path, format) = reports[reports.count - 1].backing {
      guard seen.insert(path).inserted else {
        ToolOutput.note(name, "backing file \"\(path)\" is in the chain twice: it has no end")
        throw ExitCode(1)
      }
      reports.append(try report(NamedImage(path, format: format, ImageNaming.none(), access)))
    }
    return reports
  }

  private func report(_ image: NamedImage) throws -> ImageInfoReport {
    let job = InfoJob(
      filename: image.options.path, isRaw: image.format == .raw,
      limits: limits ? try Self.limits(image) : nil)
    return try JobRunner().run(job, on: image)
  }

  private static func limits(_ image: NamedImage) throws(ExitCode) -> HostLimits {
    var limits = HostLimits(isProbed: image.isProbed)
    guard image.options.mode == .direct else { return limits }
    let descriptor = unsafe qublk_open(image.options.path, 1, 0)
    guard descriptor >= 0 else { return limits }  // the job says why
    defer { close(descriptor) }
    var memory: UInt32 = 0
    var offset: UInt32 = 0
    let result = unsafe qublk_dio_alignment(descriptor, &memory, &offset)
    // Without an answer, a page is enough everywhere.
    limits.memoryAlignment = result < 0 || memory == 0 ? 4096 : UInt64(memory)
    limits.requestAlignment = result < 0 || offset == 0 ? 4096 : UInt64(offset)
    return limits
  }
}
