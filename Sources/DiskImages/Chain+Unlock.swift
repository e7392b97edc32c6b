import QCOW2Codec
import QCOW2Engine
import QCOW2Format

/// Ciphers for the encrypted images of a chain [ENC-1].
extension Chain {
  /// Unlocks every encrypted image, from the top down, and lets go of the passphrases.
  mutating func unlock() async throws(DiskImageError) {
    for index in layers.indices {
      do throws(DiskImageError.Reason) {
        layers[index].cipher = try await cipher(of: index)
      } catch { throw self.error(error, in: index) }
    }
    let rest = options.secrets.dropRest()
    if rest > 0 { throw error(.secretsLeft(rest), in: 0) }
  }

  private func cipher(
    of index: Int
  ) async throws(DiskImageError.Reason) -> (any SectorCipher)? {
    guard let references = layers[index].references else { return nil }
    let found = Self.encryption(references.header)
    if index == 0, let expected = options.encryption, found != expected {
      throw .encryption(found: found, expected: expected)
    }
    guard let found else { return nil }
    guard let secret = options.secrets.take(index) else { throw .secretMissing }
    do throws(CipherError) {
      switch found {
      case .aes: return try LegacyAESCipher(passphrase: secret)
      case .luks: return nil
      }
    } catch { throw .cipher(error) }
  }

  private static func encryption(_ header: Header) -> DiskImageOptions.Encryption? {
    switch header.cryptMethod {
    case 1: .aes
    case 2: .luks
    default: nil
    }
  }
}
