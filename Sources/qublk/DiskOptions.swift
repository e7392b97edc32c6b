import ArgumentParser
import BlockCore
import DiskImages
import QCOW2Engine

/// The options of every command that opens an image with all that it refers to.
struct DiskOptions: ParsableArguments {
  @Option(
    help: """
      The format of the backing file, raw or qcow2, in place of what the image says; may be given again, \
      for the next backing file down the chain.
      """)
  var backingFormat: [BackingFormat] = []

  @Option(
    help: """
      Which backing and data files an image may name: any, same-directory, deny, or a path that they \
      must be at or below; may be given again. (default: any for images of yours, same-directory for \
      those of other users; under sudo, yours are root's and those of the user who called it)
      """)
  var backingPolicy: [String] = []

  @Option(help: "The external data file, in place of the one that the image names.")
  var dataFile: String?

  @Option(
    help: """
      The most memory for the mapping of the image; all backing files together get as much again; with \
      suffix k, M or G. (default: what the disk needs, at most 32M)
      """)
  var cacheSize: ByteSize?

  @Option(
    help: """
      Turn writes that are nothing but zeros into write-zeroes: off, on, or unmap, which may give their \
      place back. Every write's data is looked at, and copied.
      """)
  var detectZeroes = DetectZeroes.off

  @Option(
    help: """
      Take QEMU's locks: auto, on or off. Without them nothing keeps another program from changing the \
      image at the same time.
      """)
  var locking = Locking.auto

  /// The words of `--locking`.
  enum Locking: String, ExpressibleByArgument, CaseIterable {
    case auto, on, off
  }

  @OptionGroup var secrets: SecretOptions

  static let cacheMinimum: UInt64 = 64 << 10

  func validate() throws {
    if let cacheSize, cacheSize.bytes < Self.cacheMinimum {
      throw ValidationError(
        "--cache-size is \(cacheSize.bytes) bytes, expected at least \(Self.cacheMinimum)")
    }
  }

  /// Puts what was given into `options`; nothing then depends on the current directory any more,
  /// and every secret is read.
  func apply(to options: inout DiskImageOptions) throws {
    options.backingFormats = backingFormat
    options.engine.cacheBytes = cacheSize.map { Int(clamping: $0.bytes) }
    do throws(BackingPolicy.BadValue) {
      options.backingPolicy = try BackingPolicy(parsing: backingPolicy, callers: Caller.users)
    } catch { throw ValidationError("--backing-policy: \(error.message)") }
    options.dataFile = dataFile
    options.detectZeroes = detectZeroes
    if locking == .off {
      options.locks = .ignored
      ToolOutput.warn("--locking off: other programs can change the image at the same time")
    }
    options.secrets = LayerSecrets(inOrder: try secrets.read())
    do throws(Errno) { try options.makePathsAbsolute() } catch {
      throw ValidationError("cannot find out the current directory: \(error)")
    }
  }
}

extension BackingFormat: ExpressibleByArgument {}

extension DetectZeroes: ExpressibleByArgument {}
