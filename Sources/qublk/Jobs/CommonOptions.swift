import ArgumentParser
import BlockCore
import Daemon
import DiskImages
import QCOW2Codec

// Options that several image commands share, each with qemu-img's letters and long name.

/// `-f`: the format of the image.
struct FormatOption: ParsableArguments {
  @Option(
    name: [.customShort("f"), .customLong("format")],
    help: "The format of the image: qcow2 or raw. (default: what its first bytes say)")
  var format: String?
}

/// `-U`: use an image that another process has.
struct ShareOption: ParsableArguments {
  @Flag(
    name: [.customShort("U"), .customLong("force-share")],
    help: "Take no locks: look at an image that another process may change meanwhile.")
  var forceShare = false
}

/// `-q`: no output but errors.
struct QuietOption: ParsableArguments {
  @Flag(name: [.customShort("q"), .customLong("quiet")], help: "Print nothing but errors.")
  var quiet = false
}

/// `-p`: show progress.
struct ProgressOption: ParsableArguments {
  @Flag(
    name: [.customShort("p"), .customLong("progress")],
    help: """
      Show how far the work has come, in a pipe too. On a terminal that is shown anyway; the signal \
      SIGUSR1 has it printed once.
      """)
  var progress = false
}

/// `-t`: the cache mode of the image that is written.
struct CacheOption: ParsableArguments {
  @Option(
    name: [.customShort("t"), .customLong("cache")],
    help: "The cache mode: none, writeback, writethrough, directsync or unsafe.")
  var cache: String?
}

/// `-T`: the cache mode of what is read only.
struct SourceCacheOption: ParsableArguments {
  @Option(
    name: [.customShort("T"), .customLong("source-cache")],
    help:
      "The cache mode of what is only read: none, writeback, writethrough, directsync or unsafe.")
  var sourceCache: String?
}

/// `-T` of `rebase`: the cache mode of the new backing file.
struct BackingCacheOption: ParsableArguments {
  @Option(
    name: [.customShort("T"), .customLong("backing-cache")],
    help:
      "The cache mode of the new backing file: none, writeback, writethrough, directsync or unsafe."
  )
  var backingCache: String?
}

/// How images are named, and with what they are unlocked.
struct ImageNaming: ParsableArguments {
  @Flag(help: "The image is given as options: driver=qcow2,file.filename=….")
  var imageOpts = false
  @OptionGroup var objects: ObjectOption
  @OptionGroup var secrets: SecretOptions

  /// No options, for a name that an image gives.
  static func none() throws -> Self { try parse([]) }

}

/// The secrets that options of an image can name.
struct ObjectOption: ParsableArguments {
  @Option(
    help: """
      An object: secret,id=NAME,file=PATH[,format=base64], or data=TEXT, which everyone can see in \
      the list of processes; may be given again.
      """)
  var object: [String] = []

  /// The secrets in the texts of `--object`.
  ///
  /// - Throws: An error for a text that is no secret, and for a name that stands twice.
  func secrets() throws(OptionTextError) -> [ObjectSecret] {
    var secrets: [ObjectSecret] = []
    for text in object {
      let next = try ObjectSecret(parsing: text)
      if secrets.secret(next.id) != nil {
        throw OptionTextError(option: "--object", problem: .sameID(next.id))
      }
      secrets.append(next)
    }
    return secrets
  }

  /// The same, for a command that has no errors of its own.
  func read() throws(CommandError) -> [ObjectSecret] {
    do throws(OptionTextError) { return try secrets() } catch { throw .optionText(error) }
  }
}
