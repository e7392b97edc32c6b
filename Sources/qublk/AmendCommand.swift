import ArgumentParser
import Daemon
import DiskImages
import ImageJobs
import QCOW2Codec
import QCOW2Tools

/// `qublk amend`: other options for an image that exists.
struct AmendCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "amend", abstract: "Change options of an image.",
    discussion: """
      Options for -o, as a comma list: compat (0.10, 1.1), refcount_bits, lazy_refcounts, data_file, \
      data_file_raw=off, size, and for the key slots of an image encrypted by LUKS encrypt.state (active, \
      inactive), encrypt.new-secret and encrypt.old-secret (ids of --object), encrypt.keyslot, \
      encrypt.iter-time (milliseconds). "-o help" lists them. A crash leaves the old image or the new one, \
      or an image on which the same command goes on. If the image is attached, its daemon changes \
      lazy_refcounts, and the size to a larger one; the rest needs an image that nobody uses.
      """)

  @Option(
    name: [.customShort("o"), .customLong("options")],
    help: "Options, as name=value,name=value; may be given again.")
  var options: [String] = []
  @OptionGroup var format: FormatOption
  @OptionGroup var naming: ImageNaming
  @OptionGroup var cache: CacheOption
  @OptionGroup var progress: ProgressOption
  @OptionGroup var quiet: QuietOption
  @Flag(help: "Allow to overwrite key slots in use, and to erase the last one.")
  var force = false
  @Argument(help: ArgumentHelp("The image.", valueName: "file")) var name: String?

  /// `-o help`, which qemu-img takes anywhere in a list.
  private var wantsHelp: Bool {
    options.contains { list in
      list.split(separator: ",").contains { $0 == "help" || $0 == "?" }
    }
  }

  func run() throws {
    if options.isEmpty { throw fail("Must specify options (-o)") }
    if wantsHelp, let format = format.format { return try help(format) }
    guard let name else { throw fail("Expecting one image file name") }
    let image = try NamedImage(
      name, format: format.format, naming,
      NamedImage.Access(isReadOnly: false, cache: cache.cache))
    if wantsHelp { return try help(image.format.rawValue) }
    guard image.format == .qcow2 else { throw unsupported(image.format.rawValue) }
    let wanted: AmendOptions
    let keySlots: KeySlotChange?
    do throws(ToolError) {
      wanted = try AmendOptions(lists: options)
      keySlots = try keySlotChange(wanted, image)
    } catch { throw ToolOutput.fail(name, error) }
    try amend(image, wanted, keySlots)
  }

  /// The size changes when all else has, but for the way down to version 2: so qemu-img does it.
  private func amend(
    _ image: NamedImage, _ wanted: AmendOptions, _ keySlots: KeySlotChange?
  ) throws {
    // Passphrases do not go to a daemon.
    if keySlots != nil { try JobRunner.refuseServed(image) }
    let runner = JobRunner(showsProgress: progress.progress, isQuiet: quiet.quiet)
    guard let size = wanted.size else {
      _ = try runner.run(AmendJob(wanted, keySlots: keySlots), on: image)
      return
    }
    _ = try JobRunner(isQuiet: true).run(AmendJob(wanted, isTrial: true), on: image)
    var before = wanted
    if wanted.version == 2 { before.version = nil }
    if before.changesImage { _ = try runner.run(AmendJob(before, keySlots: keySlots), on: image) }
    _ = try runner.run(ResizeJob(size: size), on: image)
    if wanted.version == 2 {
      var last = AmendOptions()
      last.version = 2
      _ = try runner.run(AmendJob(last), on: image)
    }
  }

  private func keySlotChange(
    _ wanted: AmendOptions, _ image: NamedImage
  ) throws(ToolError) -> KeySlotChange? {
    guard let words = wanted.keySlots else { return nil }
    let objects: [ObjectSecret]
    do throws(CommandError) { objects = try naming.objects.read() } catch {
      throw .name(error.text)
    }
    return try KeySlotChange(words, unlocking: image.options.secrets.first, isForced: force) {
      (id) throws(ToolError) in
      guard let secret = objects.secret(id) else { throw .name("No secret with id '\(id)'") }
      return secret
    }
  }

  private func help(_ format: String) throws {
    guard format == "qcow2" else { throw unsupported(format) }
    try ToolOutput.write(AmendOptions.helpText)
  }

  private func unsupported(_ format: String) -> ExitCode {
    fail(
      DiskFormat(rawValue: format) == nil
        ? "Unknown file format '\(format)'"
        : "Format driver '\(format)' does not support option amendment")
  }

  private func fail(_ text: String) -> ExitCode {
    ToolOutput.note(name ?? "amend", text)
    return ExitCode(1)
  }
}
