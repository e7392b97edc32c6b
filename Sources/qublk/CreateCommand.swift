import ArgumentParser
import Daemon
import DiskImages
import Glibc
import HostFiles
import QCOW2Codec
import QCOW2Format
import QCOW2Tools

/// `qublk create`: a new, empty image, in qemu-img's language.
struct CreateCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "create", abstract: "Create an empty image, of qcow2 or raw.",
    discussion: """
      Options for -o, as a comma list: cluster_size, compat, refcount_bits, lazy_refcounts, \
      preallocation (off, metadata, falloc, full), extended_l2, compression_type (zlib, zstd), \
      backing_file, backing_fmt (raw, qcow2), data_file, data_file_raw, encrypt.format (luks, aes), \
      encrypt.key-secret (the id of an --object), and for luks encrypt.cipher-alg, \
      encrypt.cipher-mode, encrypt.ivgen-alg, encrypt.ivgen-hash-alg, encrypt.hash-alg, \
      encrypt.iter-time (milliseconds); size, nocow, extent_size_hint. Of these raw images have \
      size, preallocation, nocow and extent_size_hint. Sizes may end in k, M, G, T, P or E; without one, the \
      image is as large as its backing file.
      """)

  @OptionGroup var quiet: QuietOption
  @Option(
    name: [.short, .long],
    help: "The format: qcow2 or raw. qemu-img's default is raw, qublk's is qcow2.")
  var format = "qcow2"
  @Option(
    name: [.customShort("o"), .customLong("options")],
    help: "Options, as name=value,name=value; -o help lists them.")
  var options: [String] = []
  @Option(
    name: [.customShort("b"), .customLong("backing")],
    help: "The backing file, as the image is to name it.")
  var backingFile: String?
  @Option(
    name: [.customShort("B"), .customShort("F"), .customLong("backing-format")],
    help: "The format of the backing file.")
  var backingFormat: String?
  @Flag(
    name: [.customShort("u"), .customLong("backing-unsafe")], help: "Do not open the backing file.")
  var unsafeBacking = false
  @OptionGroup var objects: ObjectOption
  @OptionGroup var secrets: SecretOptions
  @Argument(
    help: ArgumentHelp(
      "The image file or block device; what it holds is lost.", valueName: "file"))
  var name: String?
  @Argument(help: "The virtual size.") var size: String?

  /// As error lines call it.
  private var file: String { FileReference.commandLinePath(name ?? "") }

  func run() throws {
    if CreateHelp.isWanted(options) {
      guard let text = CreateHelp.text(format) else { throw unknownFormat }
      return try ToolOutput.write(text)
    }
    guard let name, !name.isEmpty else {
      throw ValidationError(
        name == nil
          ? "the name of the image is missing: create FILE SIZE" : "the name of the image is empty")
    }
    switch format {
    case "qcow2": try createImage()
    case "raw": try createRaw()
    default: throw unknownFormat
    }
  }

  private var unknownFormat: ExitCode {
    ToolOutput.fail(
      name ?? "create", .option(.badValue(name: "-f", found: format, allowed: "qcow2 or raw")))
  }

  private func createImage() throws {
    let created = try createOptions()
    let passphrase = try passphrase(created.encryption)
    do throws(ToolError) { try ImageCreate.judge(created, path: file) } catch {
      throw ToolOutput.fail(file, error)
    }
    if !quiet.quiet { try ToolOutput.write(created.formattingLine(path: file) + "\n") }
    do throws(ToolError) {
      try ImageCreate.run(
        created, path: file, passphrase: passphrase, lock: ToolLock.writer)
    } catch {
      throw ToolOutput.fail(file, error)
    }
  }

  private func createRaw() throws {
    do throws(ToolError) {
      if backingFile != nil || backingFormat != nil {
        throw .name("a raw image has no backing file: use -f qcow2, or leave out -b and -B")
      }
      let created: RawCreateOptions
      do throws(OptionError) { created = try RawCreateOptions(lists: options, size: size) } catch {
        throw .option(error)
      }
      if !quiet.quiet {
        _ = writeAll(STDOUT_FILENO, created.formattingLine(path: file) + "\n")
      }
      if let warning = try RawCreate.run(created, path: file, lock: ToolLock.writer) {
        ToolOutput.note(file, warning)
      }
    } catch { throw ToolOutput.fail(file, error) }
  }

  private func createOptions() throws -> CreateOptions {
    do throws(ToolError) {
      let size = { (name: String, format: String) throws(ToolError) -> UInt64 in
        guard name != file else { throw .option(.conflict(.backingIsImage)) }
        return try BackingSize.read(name, format: format, image: file, lock: ToolLock.reader)
      }
      return try CreateOptions(
        lists: options, size: self.size, backingFile: backingFile, backingFormat: backingFormat,
        backingSize: unsafeBacking ? nil : size)
    } catch {
      throw ToolOutput.fail(file, error)
    }
  }
}

extension CreateCommand {
  /// The passphrase of the new image; nil if it is not to be encrypted.
  private func passphrase(_ encryption: CreateEncryption?) throws -> Secret? {
    let objects = try self.objects.read()
    let given = try secrets.read()
    do throws(OptionError) {
      if given.count > (encryption == nil ? 0 : 1) { throw .passphraseNotWanted }
      guard let encryption else { return nil }
      if encryption.secretID != nil && !given.isEmpty { throw .passphraseTwice }
      if encryption.secretID == nil && given.isEmpty { throw .passphraseMissing }
    } catch { throw ToolOutput.fail(file, .option(error)) }
    guard let id = encryption?.secretID else { return given.first }
    if let secret = objects.secret(id) { return secret }
    throw CommandError.optionText(OptionTextError(option: "-o", problem: .noSuchSecret(id: id)))
  }
}
