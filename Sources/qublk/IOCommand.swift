import ArgumentParser
import BlockCore
import Daemon
import DiskImages
import DiskShell

/// `qublk io`: the engine's workbench, without a device.
struct IOCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "io", abstract: "Read, write and inspect a disk by commands, without a device.",
    discussion: """
      Options and commands are those of qemu-io; "qublk io -c help" lists the commands. Without -c, \
      commands are read from standard input, one a line. The format is never guessed.
      """)

  @Option(name: [.customShort("c"), .customLong("cmd")], help: "A command; may be given again.")
  var commands: [String] = []
  @Option(name: .shortAndLong, help: "The format of the image: qcow2 or raw. (default: qcow2)")
  var format: String?
  @Flag(name: .shortAndLong, help: "Open for reading only.") var readOnly = false
  @Flag(name: .shortAndLong, help: "Writes go to an overlay that is thrown away.")
  var snapshot = false
  @Flag(name: .shortAndLong, help: "Bypass the host's page cache, as -t none.")
  var nocache = false
  @Flag(name: [.customShort("C"), .long], help: "Copy what is read from backing files.")
  var copyOnRead = false
  @Flag(name: [.customShort("U"), .long], help: "Take no locks; needs -r.")
  var forceShare = false
  @Flag(name: .shortAndLong, help: "Use memory that is not aligned.") var misalign = false
  @Option(
    name: [.customShort("t"), .long],
    help: "The cache mode: none, writeback, writethrough, directsync or unsafe.")
  var cache: String?
  @Option(
    name: [.customShort("d"), .long], help: "What discards do: unmap (on) or ignore (off).")
  var discard: String?
  @Option(name: .customShort("o"), help: "Options of the image, as name=value,name=value.")
  var options: [String] = []
  @Flag(help: "The image is given as options: driver=qcow2,file.filename=….")
  var imageOpts = false
  @OptionGroup var objects: ObjectOption
  @Flag(name: [.customShort("k"), .long], help: .hidden) var nativeAio = false
  @Option(name: [.customShort("i"), .customLong("aio")], help: .hidden) var asyncMode: String?
  @OptionGroup var disk: DiskOptions
  @Argument(help: "The image; without it, use the command \"open\".") var image: String?

  func run() throws {
    var options = DiskImageOptions(path: "")
    try disk.apply(to: &options)
    DamageNotes.collect(from: &options)
    let script: Workbench.Script
    do throws(IOFailure) {
      script = Workbench.Script(
        opening: try opening(options), commands: commands, secrets: try secrets())
    } catch {
      if let text = error.lines.errors { IOOutput.complain(text + "\n") }
      throw ExitCode(1)
    }
    let succeeded: Bool
    do throws(Errno) { succeeded = try Workbench.run(script) } catch {
      throw CommandError.ring(error)
    }
    if !succeeded { throw ExitCode(1) }
  }

  private func secrets() throws(IOFailure) -> [ObjectSecret] {
    do throws(OptionTextError) { return try objects.secrets() } catch { throw .optionText(error) }
  }

  /// What to open at once; nil if no image is named.
  private func opening(_ options: DiskImageOptions) throws(IOFailure) -> DiskOpening? {
    try IOFailure.opening { () throws(OpeningError) in try diskOpening(options) }
  }

  private func diskOpening(_ options: DiskImageOptions) throws(OpeningError) -> DiskOpening? {
    var opening = DiskOpening()
    opening.disk = options
    opening.isReadOnly = readOnly
    opening.usesOverlay = snapshot
    opening.copiesOnRead = copyOnRead
    opening.sharesByForce = forceShare
    opening.misaligns = misalign
    if nocache { opening.cache = .none }
    if let cache { try opening.setCache(cache) }
    if let discard { try opening.setDiscard(discard) }
    if let format { try opening.setFormat(format) }
    for list in self.options { try opening.apply(list: list) }
    guard let image else { return nil }
    if imageOpts {
      if format != nil { throw OpeningError("--image-opts and -f are mutually exclusive") }
      try opening.apply(list: image)
    } else {
      try opening.setName(image)
    }
    if opening.path == nil { throw OpeningError("--image-opts: \"file.filename\" is missing") }
    return opening
  }
}
