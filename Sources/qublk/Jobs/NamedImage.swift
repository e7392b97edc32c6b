import ArgumentParser
import BlockCore
import Daemon
import DiskImages
import Glibc
import ImageJobs
import QCOW2Engine

/// An image as a command was given it: what it is, and how it is to be opened.
struct NamedImage {
  /// As the user wrote it; what messages call it.
  let name: String
  let format: DiskFormat
  /// Nobody said the format: the first bytes did.
  let isProbed: Bool
  var options: DiskImageOptions

  /// Whether the image is written to, and whether locks keep others out meanwhile.
  struct Access {
    /// Whether it is only read.
    var isReadOnly = true
    /// No locks (`-U`).
    var sharesByForce = false
    /// The word of `-t` or `-T`; nil for the standard.
    var cache: String?
    /// The threads that the job serves the disk with.
    var workers = 1
  }

  /// Finds out what `name` is.
  ///
  /// - Parameters:
  ///   - name: A path, "file:PATH", "json:{…}", or with `--image-opts` a list of options.
  ///   - format: The word of `-f`.
  ///   - naming: The options that say how the name is meant.
  ///   - access: What the command wants of the image.
  /// - Throws: The exit status, after an error line.
  init(
    _ name: String, format: String?, _ naming: ImageNaming, _ access: Access = Access()
  ) throws {
    self.name = name
    let objects = try naming.objects.read()
    let passphrases = try naming.secrets.read()
    do throws(OpeningError) {
      let opening = try Self.opening(name, format, naming.imageOpts, access)
      isProbed = opening.format == nil
      if let format = opening.format {
        self.format = format
      } else {
        self.format = try DiskFormat.probe(opening.path ?? "")
      }
      var options = try opening.diskOptions(objects)
      if !passphrases.isEmpty { options.secrets = LayerSecrets(inOrder: passphrases) }
      options.name = name
      DamageNotes.collect(from: &options)
      self.options = options
    } catch {
      ToolOutput.note(name, error.text)
      throw ExitCode(1)
    }
  }

  private static func opening(
    _ name: String, _ format: String?, _ isOptions: Bool, _ access: Access
  ) throws(OpeningError) -> DiskOpening {
    var opening = DiskOpening()
    opening.isReadOnly = access.isReadOnly
    opening.sharesByForce = access.sharesByForce
    opening.workers = access.workers
    if let cache = access.cache { try opening.setCache(cache) }
    if isOptions {
      if format != nil { throw OpeningError("--image-opts and --format are mutually exclusive") }
      try opening.apply(list: name)
    } else {
      if let format { try opening.setFormat(format) }
      if name.isEmpty { throw OpeningError("the name of the image is empty") }
      try opening.setName(name)
    }
    if opening.path == nil { throw OpeningError("option \"file.filename\" is missing") }
    // What the options of the image say cannot give a command that reads the right to write.
    if access.isReadOnly { opening.isReadOnly = true }
    return opening
  }
}
