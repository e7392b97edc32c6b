import ArgumentParser
import Daemon
import DiskImages
import QCOW2Codec

/// Where the passphrases of encrypted images come from.
struct SecretOptions: ParsableArguments {
  @Option(
    help: """
      A file with the passphrase of an encrypted image; every byte counts, a newline at the end too. \
      May be given again, for the next encrypted image down the backing chain.
      """)
  var secretFile: [String] = []

  @Option(help: "As --secret-file, from an open file descriptor.")
  var secretFd: [Int32] = []

  @Option(
    help: "As --secret-file, from the \"user\" key of this description in the kernel's keyrings.")
  var secretKeyring: [String] = []

  func validate() throws {
    let ways = [!secretFile.isEmpty, !secretFd.isEmpty, !secretKeyring.isEmpty]
    if ways.count(where: { $0 }) > 1 {
      throw ValidationError(
        "--secret-file, --secret-fd and --secret-keyring cannot be combined: their order would be "
          + "unclear")
    }
  }

  /// In the order of the command line.
  var sources: [SecretSource] {
    secretFile.map { .file($0) } + secretFd.map { .descriptor($0) }
      + secretKeyring.map { .keyring($0) }
  }

  /// Reads all of them.
  func read() throws(CommandError) -> [Secret] {
    do throws(SecretError) {
      var secrets: [Secret] = []
      for source in sources { secrets.append(try source.read()) }
      return secrets
    } catch { throw .secret(error) }
  }
}
