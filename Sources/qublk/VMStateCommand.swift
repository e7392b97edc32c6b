import ArgumentParser
import DiskImages
import ImageJobs
import JSON
import QCOW2Engine
import QCOW2Tools

/// `qublk vmstate`: lists, exports and imports VM state, for which qemu-img has no command.
struct VMStateCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "vmstate", abstract: "List, export or import the VM state of internal snapshots.",
    discussion: """
      list shows the snapshots that have VM state. export writes that of one snapshot to a raw file, \
      which only its owner can read and which takes the place of one that is there. import gives a \
      snapshot that exists the bytes of a file as its VM state, in place of what it had; its disk stays. \
      An empty file takes the VM state away. SNAPSHOT is an ID or a name. list also works while the \
      image is attached; export and import need an image that nobody uses.
      """)

  /// What is done.
  enum Action: String, CaseIterable, ExpressibleByArgument {
    case list, export, `import`
  }

  @OptionGroup var format: FormatOption
  @OptionGroup var naming: ImageNaming
  @OptionGroup var share: ShareOption
  @Option(help: "How list answers: human or json.") var output = OutputFormat.human
  @OptionGroup var quiet: QuietOption
  @OptionGroup var progress: ProgressOption
  @Argument(help: ArgumentHelp("The image.", valueName: "file")) var name: String
  @Argument(help: "list, export or import.") var action: Action
  @Argument(help: ArgumentHelp("For export and import: the snapshot.", valueName: "snapshot"))
  var snapshot: String?
  @Argument(help: ArgumentHelp("For export and import: the raw file.", valueName: "state"))
  var file: String?

  func validate() throws {
    if action == .list, let snapshot {
      throw ValidationError("list takes no snapshot, and \"\(snapshot)\" was given")
    }
    if action != .list, snapshot == nil || file == nil {
      throw ValidationError(
        "\(action.rawValue) needs a snapshot and a file: qublk vmstate IMAGE \(action.rawValue) "
          + "SNAPSHOT FILE")
    }
    if action == .import, share.forceShare {
      throw ValidationError(
        "-U is for list and export: nobody else may use an image that is changed")
    }
    if action != .list, output == .json {
      throw ValidationError("--output is for list: \(action.rawValue) prints nothing")
    }
  }

  func run() throws {
    var access = NamedImage.Access()
    access.isReadOnly = action != .import
    access.sharesByForce = share.forceShare
    var image = try NamedImage(name, format: format.format, naming, access)
    if image.format != .qcow2 {
      throw ToolOutput.fail(name, JobError.format(needed: .qcow2))
    }
    var runner = JobRunner(showsProgress: progress.progress, isQuiet: quiet.quiet)
    guard let snapshot, let file else { return try list(image, runner) }
    runner.asksDaemon = !share.forceShare
    if !share.forceShare { try JobRunner.refuseServed(image) }
    let selector = SnapshotSelector.idOrName(snapshot)
    if action == .import {
      _ = try runner.run(VMStateImportJob(selector, file: file), on: image)
    } else {
      image.options.engine.snapshot = selector
      _ = try runner.run(VMStateExportJob(selector, file: file), on: image)
    }
  }

  private func list(_ image: NamedImage, _ runner: JobRunner) throws {
    let report = try runner.run(SnapshotListJob(), on: image).withVMState
    switch output {
    case .human: try ToolOutput.write(report.lines.map { $0 + "\n" }.joined())
    case .json: try ToolOutput.write(report.json.qemuText + "\n")
    }
  }
}
