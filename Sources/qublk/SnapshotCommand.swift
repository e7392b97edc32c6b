import ArgumentParser
import DiskImages
import ImageJobs
import QCOW2Engine
import QCOW2Tools

/// `qublk snapshot`: internal snapshots, in qemu-img's language.
struct SnapshotCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "snapshot", abstract: "List, take, apply or delete internal snapshots.",
    discussion: """
      Without -l, -c, -a or -d, the snapshots are listed. -a looks for an ID, then for a name; -d looks \
      for a name. If several snapshots have the name, the first one is meant. If the image is attached, \
      its daemon lists, takes and deletes snapshots while the device is in use. -a needs an image that \
      nobody uses.
      """)

  @Flag(name: .shortAndLong, help: "List the snapshots.") var list = false
  @Option(
    name: .shortAndLong,
    help: ArgumentHelp("Take a snapshot with this name.", valueName: "name"))
  var create: [String] = []
  @Option(
    name: .shortAndLong,
    help: ArgumentHelp(
      "Give the disk the contents of this snapshot; its present contents are lost.",
      valueName: "snapshot"))
  var apply: [String] = []
  @Option(
    name: .shortAndLong, help: ArgumentHelp("Delete this snapshot.", valueName: "name"))
  var delete: [String] = []
  @OptionGroup var format: FormatOption
  @OptionGroup var naming: ImageNaming
  @OptionGroup var share: ShareOption
  @OptionGroup var quiet: QuietOption
  @OptionGroup var progress: ProgressOption
  @Argument(help: ArgumentHelp("The image.", valueName: "file")) var name: String

  private var changes: Int { create.count + apply.count + delete.count }

  func validate() throws {
    if (list ? 1 : 0) + changes > 1 {
      throw ValidationError("only one of -l, -c, -a and -d can be given, and once")
    }
    if share.forceShare && changes > 0 {
      throw ValidationError("-U is for -l only: nobody else may use an image that is changed")
    }
  }

  func run() throws {
    var access = NamedImage.Access()
    access.isReadOnly = changes == 0
    access.sharesByForce = share.forceShare
    let image = try NamedImage(name, format: format.format, naming, access)
    let runner = JobRunner(showsProgress: progress.progress, isQuiet: quiet.quiet)
    if let name = create.first {
      _ = try runner.run(SnapshotCreateJob(named: name), on: image)
    } else if let name = delete.first {
      _ = try runner.run(SnapshotDeleteJob(.name(name)), on: image)
    } else if let name = apply.first {
      try JobRunner.refuseServed(image)
      _ = try runner.run(SnapshotApplyJob(.idOrName(name)), on: image)
    } else if image.format == .qcow2 {
      let lines = try runner.run(SnapshotListJob(), on: image).lines
      try ToolOutput.write(lines.map { $0 + "\n" }.joined())
    }
  }
}
