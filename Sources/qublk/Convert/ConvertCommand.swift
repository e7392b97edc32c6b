import ArgumentParser
import DiskImages
import ImageJobs
import QCOW2Engine

/// `qublk convert`: copies images into a new one, in qemu-img's language.
struct ConvertCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "convert", abstract: "Copy one or more images to another, of any format.",
    discussion: """
      Several sources are copied one behind the other. The target is made as create makes images, with \
      the same -o; what it held is lost. It is never a file of the sources. What a copy that was \
      interrupted leaves cannot be taken for the whole: a new file is removed, and after a kill it is no \
      image yet, or too short.
      """)

  @Option(
    name: [.customShort("f"), .customLong("source-format")],
    help: "The format of the sources: qcow2 or raw. (default: what their first bytes say)")
  var sourceFormat: String?
  @OptionGroup var naming: ImageNaming
  @OptionGroup var sourceCache: SourceCacheOption
  @Option(
    name: [.customShort("l"), .customLong("snapshot")],
    help: "Copy this internal snapshot: an ID or name, or snapshot.id=ID,snapshot.name=NAME.")
  var snapshot: String?
  @Flag(help: "Copy the persistent bitmaps of the source, too.") var bitmaps = false
  @Flag(help: "Leave broken bitmaps out, with a warning.") var skipBrokenBitmaps = false
  @Flag(help: "Zeros take the place of what cannot be read.") var salvage = false
  @Option(
    name: [.customShort("O"), .customLong("target-format")],
    help: "The format of the target: qcow2 or raw. (default: raw)")
  var targetFormat: String?
  @Flag(help: "The target is given as options: driver=qcow2,file.filename=…; needs -n.")
  var targetImageOpts = false
  @Option(
    name: [.customShort("o"), .customLong("target-format-options")],
    help: "Options of the target, as those of create; may be given again.")
  var options: [String] = []
  @Option(
    name: [.customShort("t"), .customLong("target-cache")],
    help: """
      The cache mode of the target: none, writeback, writethrough, directsync or unsafe, which never \
      syncs. (default: unsafe)
      """)
  var targetCache: String?
  @Option(
    name: [.customShort("b"), .customShort("B"), .customLong("backing")],
    help: """
      Make the target an overlay of this backing file, and copy only what the source itself has. The \
      backing file must read as the source's own does.
      """)
  var backing: String?
  @Option(
    name: [.customShort("F"), .customLong("backing-format")],
    help: "The format of the backing file.")
  var backingFormat: String?
  @Option(
    name: [.customShort("S"), .customLong("sparse-size")],
    help: "Leave out zeros of at least so many bytes; 0 writes all zeros. (default: 4k)")
  var sparse: ByteSize?
  @Flag(
    name: [.customShort("n"), .customLong("no-create")],
    help: "Write into a target that is there; nothing is made.")
  var noCreate = false
  @Flag(help: "The target of -n is all zeros: leave them alone.") var targetIsZero = false
  @Flag(name: [.customShort("c"), .customLong("compress")], help: "Compress the data.")
  var compress = false
  @Option(
    name: [.customShort("r"), .customLong("rate-limit")],
    help: "The most bytes a second; 0 for any number.")
  var rateLimit = ByteSize(bytes: 0)
  @Option(
    name: [.customShort("m"), .customLong("parallel")],
    help: "The requests in flight, 1 to 16.")
  var parallel = 8
  @Flag(
    name: [.customShort("W"), .customLong("oob-writes")],
    help: "Taken for qemu-img's sake: writes are always out of order among those in flight.")
  var outOfOrder = false
  @Flag(
    name: [.customShort("C"), .customLong("copy-range-offloading")],
    help: "Let the host copy from raw file to raw file, which may then share their storage.")
  var offload = false
  @OptionGroup var share: ShareOption
  @OptionGroup var progress: ProgressOption
  @OptionGroup var quiet: QuietOption
  @Argument(help: ArgumentHelp("The sources, then the target.", valueName: "file"))
  var files: [String] = []

  func run() throws {
    if let problem { throw CopyRun.refuse("convert", problem) }
    var access = NamedImage.Access()
    access.sharesByForce = share.forceShare
    access.cache = sourceCache.sourceCache
    let selector = snapshot.map(Self.selector)
    let sources = try files.dropLast().map { name in
      let image = try NamedImage(name, format: sourceFormat, naming, access)
      if selector != nil, image.format != .qcow2 {
        throw CopyRun.refuse(name, "Failed to load snapshot: a raw image has none")
      }
      var options = image.options
      options.engine.snapshot = selector
      return (format: image.format, options: options)
    }
    var job = ConvertJob()
    job.sparse = sparse?.bytes ?? job.sparse
    job.compresses = compress
    job.offloads = offload
    job.salvages = salvage
    job.requests = parallel
    if bitmaps { job.bitmaps = skipBrokenBitmaps ? .sound : .all }
    let request = TargetRequest(
      name: files[files.count - 1], format: targetFormat, options: options, backing: backing,
      backingFormat: backingFormat, cache: targetCache ?? "unsafe", isThere: noCreate,
      isOptions: targetImageOpts)
    let target = try request.target(naming)
    job.targetHasBacking = request.hasBacking
    if bitmaps, target.format != .qcow2 {
      throw CopyRun.refuse(request.name, "Format driver 'raw' does not support bitmaps")
    }
    if compress, target.format != .qcow2 {
      throw CopyRun.refuse(request.name, "Compression not supported for this file format")
    }
    job.targetIsZero = noCreate ? targetIsZero : target.format == .qcow2 || !target.isDevice
    try CopyRun(progress: progress.progress, isQuiet: quiet.quiet, rateLimit: rateLimit.bytes)
      .run(job, from: sources, to: target)
  }

  /// What is wrong with the command line as a whole, in qemu-img's words.
  private var problem: String? {
    if files.count < 2 { return "Must specify image file name" }
    if targetImageOpts, !noCreate { return "--target-image-opts requires use of -n flag" }
    if targetImageOpts, targetFormat != nil {
      return "--target-image-opts and --target-format are mutually exclusive"
    }
    if targetIsZero, !noCreate { return "--target-is-zero requires use of -n flag" }
    if skipBrokenBitmaps, !bitmaps { return "Use of --skip-broken-bitmaps requires --bitmaps" }
    if bitmaps, files.count > 2 { return "Copying bitmaps only possible with single source" }
    if offload, compress { return "Cannot enable copy offloading when -c is used" }
    if offload, sparse != nil { return "Cannot enable copy offloading when -S is used" }
    if !(1...16).contains(parallel) {
      return "Invalid number of coroutines specified. Must be between 1 and 16."
    }
    if let sparse, sparse.bytes % 512 != 0 || sparse.bytes > 16 << 20 {
      return "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up "
        + "to 16777216. Select 0 to disable sparse detection (fully allocates output)."
    }
    return backingProblem
  }

  private var backingProblem: String? {
    if backing != nil, files.count > 2 {
      return
        "Having a backing file for the target makes no sense when concatenating multiple input "
        + "images"
    }
    if snapshot != nil, files.count > 2 {
      return "No support for concatenating multiple snapshot"
    }
    return nil
  }

  /// Reads the word of `-l`.
  static func selector(_ text: String) -> SnapshotSelector {
    guard text.hasPrefix("snapshot.id=") || text.hasPrefix("snapshot.name=") else {
      return .idOrName(text)
    }
    var id: String?
    var name: String?
    for (key, value) in DiskOpening.pairs(text) {
      if key == "snapshot.id" { id = value }
      if key == "snapshot.name" { name = value }
    }
    switch (id, name) {
    case (let id?, let name?): return .exact(id: id, name: name)
    case (let id?, nil): return .id(id)
    case (nil, let name?): return .name(name)
    case (nil, nil): return .idOrName(text)
    }
  }
}
