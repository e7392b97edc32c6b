import ArgumentParser
import Daemon
import DiskImages
import QCOW2Codec
import QCOW2Format
import QCOW2Tools

/// `qublk create`: a new, empty image, in qemu-img's language.
struct CreateCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "create", abstract: "Create an empty qcow2 image.",
    discussion: """
      Options for -o, as a comma list: cluster_size, compat, refcount_bits, lazy_refcounts, \
      preallocation (off, metadata, falloc, full), extended_l2, compression_type (zlib, zstd), \
      backing_file, backing_fmt (raw, qcow2), data_file, data_file_raw, encrypt.format (luks, aes), \
      encrypt.key-secret (the id of an --object), and for luks encrypt.cipher-alg, \
      encrypt.cipher-mode, encrypt.ivgen-alg, encrypt.ivgen-hash-alg, encrypt.hash-alg, \
      encrypt.iter-time (milliseconds); size. Sizes may end in k, M, G, T, P or E; without one, the \
      image is as large as its backing file.
      """)

  @Flag(name: .short, help: "Print nothing.") var quiet = false
  @Option(name: .short, help: "The format: qcow2 is the only one.") var format = "qcow2"
  @Option(name: .customShort("o"), help: "Options, as name=value,name=value.")
  var options: [String] = []
  @Option(name: .customShort("b"), help: "The backing file, as the image is to name it.")
  var backingFile: String?
  @Option(name: .customShort("F"), help: "The format of the backing file.")
  var backingFormat: String?
  @Flag(name: .customShort("u"), help: "Do not open the backing file.") var unsafeBacking = false
  @Option(
    help: """
      An object: secret,id=NAME,file=PATH[,format=base64], or data=TEXT, which everyone can see in \
      the list of processes; may be given again.
      """)
  var object: [String] = []
  @OptionGroup var secrets: SecretOptions
  @Argument(
    help: ArgumentHelp(
      "The image file or block device; what it holds is lost.", valueName: "file"))
  var name: String
  @Argument(help: "The virtual size.") var size: String?

  private var file: String { FileReference.commandLinePath(name) }

  func run() throws {
    let created = try createOptions()
    let passphrase = try passphrase(created.encryption)
    if !quiet { try ToolOutput.write(created.formattingLine(path: file) + "\n") }
    do throws(ToolError) {
      try ImageCreate.run(
        created, path: file, passphrase: passphrase, lock: ToolLock.writer)
    } catch {
      throw ToolOutput.fail(file, error)
    }
  }

  private func createOptions() throws -> CreateOptions {
    do throws(ToolError) {
      guard format == "qcow2" else {
        throw .option(.badValue(name: "-f", found: format, allowed: "qcow2"))
      }
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
    let objects = try objects()
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

  private func objects() throws(CommandError) -> [ObjectSecret] {
    do throws(OptionTextError) {
      var objects: [ObjectSecret] = []
      for text in object {
        let next = try ObjectSecret(parsing: text)
        if objects.secret(next.id) != nil {
          throw OptionTextError(option: "--object", problem: .sameID(next.id))
        }
        objects.append(next)
      }
      return objects
    } catch { throw .optionText(error) }
  }
}
