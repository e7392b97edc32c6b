import ArgumentParser
import DiskImages
import ImageJobs

/// `qublk rebase`: another backing file, or none, for an image that reads the same afterwards.
struct RebaseCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "rebase", abstract: "Change the backing file of an image.",
    discussion: """
      Where the image would read otherwise on the new backing file, what it reads now is copied into \
      it first. The header gets the new name last, so a rebase that was interrupted is simply run \
      again. With -u only the header changes: nothing is opened but the image, and what it reads \
      afterwards is yours to see to.
      """)

  @OptionGroup var format: FormatOption
  @OptionGroup var naming: ImageNaming
  @OptionGroup var cache: CacheOption
  @OptionGroup var backingCache: BackingCacheOption
  @Option(
    name: [.customShort("b"), .customLong("backing")],
    help: ArgumentHelp(
      "The new backing file; an empty name for none.",
      discussion: "A relative name counts from the directory of the image."))
  var backing: String?
  @Option(
    name: [.customShort("B"), .customShort("F"), .customLong("backing-format")],
    help: "The format of the new backing file: qcow2 or raw.")
  var backingFormat: String?
  @Flag(
    name: [.customShort("u"), .customLong("backing-unsafe")],
    help: "Change the header alone, whatever the image reads then.")
  var isUnsafe = false
  @Flag(name: [.customShort("c"), .customLong("compress")], help: "Compress what is copied.")
  var compresses = false
  @OptionGroup var share: ShareOption
  @OptionGroup var progress: ProgressOption
  @OptionGroup var quiet: QuietOption
  @Argument(help: "The image.") var file: String

  func validate() throws {
    if backing == nil && !isUnsafe {
      throw ValidationError("Must specify backing file (-b) or use unsafe mode (-u)")
    }
  }

  func run() throws {
    let job = try job()
    let image = try NamedImage(
      file, format: format.format, naming, .init(isReadOnly: false, cache: cache.cache))
    try JobRunner.refuseServed(image)
    guard image.format == .qcow2 else {
      ToolOutput.note(
        file,
        compresses
          ? "Compression not supported for this file format"
          : "Could not change the backing file to '\(backing ?? "")': Operation not supported")
      throw ExitCode(1)
    }
    let base = try baseOptions(image)
    let runner = JobRunner(showsProgress: progress.progress, isQuiet: quiet.quiet)
    try runner.watched(file) { (context: JobContext<NoValue>) in
      do throws(JobError) {
        try OfflineHost.run(job, image.options, base: base, context)
      } catch { throw JobRunner.fail(image, error) }
    } take: { _ in
    }
  }

  private func job() throws(ExitCode) -> RebaseJob {
    let format = backingFormat.map { BackingFormat(rawValue: $0) }
    if let backingFormat, format == .some(nil) {
      ToolOutput.note(file, "Invalid format name: '\(backingFormat)': expected qcow2 or raw")
      throw ExitCode(1)
    }
    let name = backing.flatMap { $0.isEmpty ? nil : $0 }
    if let name, format == nil {
      ToolOutput.note(
        file,
        "Could not change the backing file to '\(name)': backing format must be specified: give it "
          + "with -B qcow2 or -B raw")
      throw ExitCode(1)
    }
    return RebaseJob(
      base: name, format: name == nil ? nil : format ?? nil, isUnsafe: isUnsafe,
      compresses: compresses)
  }

  /// How the new backing file is opened.
  private func baseOptions(_ image: NamedImage) throws(ExitCode) -> DiskImageOptions {
    var opening = DiskOpening()
    opening.isReadOnly = true
    opening.sharesByForce = share.forceShare
    do throws(OpeningError) {
      if let mode = backingCache.backingCache { try opening.setSourceCache(mode) }
      var options = try opening.diskOptions([])
      DamageNotes.collect(from: &options)
      options.secrets = image.options.secrets
      options.currentDirectory = image.options.currentDirectory
      return options
    } catch {
      ToolOutput.note(file, error.text)
      throw ExitCode(1)
    }
  }
}
