import BlockCore
import HostFiles
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
    if options.keepsSecrets { return }
    let rest = options.secrets.dropRest()
    if rest > 0 { throw error(.secretsLeft(rest), in: 0) }
  }

  private func cipher(
    of index: Int
  ) async throws(DiskImageError.Reason) -> (any SectorCipher)? {
    guard let head = layers[index].head else { return nil }
    let found = Self.encryption(head.header)
    if index == 0, let expected = options.encryption, found != expected {
      throw .encryption(found: found, expected: expected)
    }
    guard let found else { return nil }
    guard let secret = options.secrets.take(index) else { throw .secretMissing }
    switch found {
    case .aes:
      do throws(CipherError) { return try LegacyAESCipher(passphrase: secret) } catch {
        throw .cipher(error)
      }
    case .luks: return try await luksCipher(layers[index].file, head, secret)
    }
  }

  /// Unlocks a LUKS header, which takes as long as its iterations ask for.
  private func luksCipher(
    _ file: RingHostFile, _ head: HeaderCluster, _ secret: Secret
  ) async throws(DiskImageError.Reason) -> LUKSCipher {
    guard let pointer = head.encryptionHeader else { throw .encryptionHeaderMissing }
    // What an image says of lengths must not decide how much memory is used.
    let area = IOBuffer(count: Int(min(pointer.length, UInt64(LUKSPartitionHeader.largestArea))))
    defer { withExtendedLifetime(area) {} }
    guard pointer.offset.bytes < FormatLimit.hostOffset else {
      throw .luks(.truncated(found: 0, expected: area.count))
    }
    do throws(Errno) { try await file.read(into: area.data, at: pointer.offset) } catch {
      throw .engine(.io(.read, at: pointer.offset, error))
    }
    do throws(LUKSError) {
      return try unsafe LUKSCipher(
        unlocking: UnsafeRawBufferPointer(start: area.base, count: area.count),
        passphrase: secret)
    } catch { throw .luks(error) }
  }

  private static func encryption(_ header: Header) -> DiskImageOptions.Encryption? {
    switch header.cryptMethod {
    case 1: .aes
    case 2: .luks
    default: nil
    }
  }
}
