import ArgumentParser
import BlockCore
import DiskImages
import QCOW2Codec

/// The options of every command that opens an image with all that it refers to.
struct DiskOptions: ParsableArguments {
  @Option(
    help: """
      The format of the backing file, raw or qcow2, in place of what the image says; given again, that \
      of the next one down.
      """)
  var backingFormat: [BackingFormat] = []

  @Option(
    help: """
      Which backing and data files an image may name: any, same-directory, deny, or a path that they \
      must be at or below; may be given again. (default: any)
      """)
  var backingPolicy: [String] = []

  @Option(help: "The external data file, in place of the one that the image names.")
  var dataFile: String?

  @Option(
    help: """
      A file with the passphrase of an encrypted image; every byte counts, a newline at the end too. \
      Given again, that of the next encrypted image down the backing chain.
      """)
  var secretFile: [String] = []

  @Option(help: "The same from an open file descriptor.")
  var secretFd: [Int32] = []

  @Option(help: "The same from a \"user\" key of this description in the kernel's keyrings.")
  var secretKeyring: [String] = []

  func validate() throws {
    let ways = [!secretFile.isEmpty, !secretFd.isEmpty, !secretKeyring.isEmpty]
    if ways.count(where: { $0 }) > 1 {
      throw ValidationError(
        "--secret-file, --secret-fd and --secret-keyring cannot be combined: their order would be "
          + "unclear")
    }
  }

  private var secretSources: [SecretSource] {
    secretFile.map { .file($0) } + secretFd.map { .descriptor($0) }
      + secretKeyring.map { .keyring($0) }
  }

  /// Puts what was given into `options`; nothing then depends on the current directory any more, and
  /// every secret is read.
  func apply(to options: inout DiskImageOptions) throws {
    options.backingFormats = backingFormat
    do throws(BackingPolicy.BadValue) {
      options.backingPolicy = try BackingPolicy(parsing: backingPolicy)
    } catch { throw ValidationError("--backing-policy: \(error.message)") }
    options.dataFile = dataFile
    do throws(SecretError) {
      var secrets: [Secret] = []
      for source in secretSources { secrets.append(try source.read()) }
      options.secrets = LayerSecrets(inOrder: secrets)
    } catch { throw CommandError.secret(error) }
    do throws(Errno) { try options.makePathsAbsolute() } catch {
      throw ValidationError("cannot find out the current directory: \(error)")
    }
  }
}

extension BackingFormat: ExpressibleByArgument {}
