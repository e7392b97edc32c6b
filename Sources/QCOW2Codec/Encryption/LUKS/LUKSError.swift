/// Why a LUKS header could not be used or made.
public enum LUKSError: Error, Equatable, Sendable {
  /// The header area ends too early; in bytes.
  case truncated(found: Int, expected: Int)
  /// A field that is broken, or asks for what is not supported.
  case badField(name: String, found: String, allowed: String)
  /// No key slot is in use, so nothing opens the image.
  case noActiveSlot
  /// The passphrase fits none of the key slots in use.
  case wrongPassphrase
  case cipher(CipherError)
  /// The kernel's random numbers cannot be had.
  case noRandomness
}

extension LUKSError: SecretMemoryFailure {
  package static func noSecretMemory(bytes: Int) -> LUKSError { .cipher(.noMemory(bytes: bytes)) }
}
