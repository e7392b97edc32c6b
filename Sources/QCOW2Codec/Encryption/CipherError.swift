/// Why a cipher could not be set up.
public enum CipherError: Error, Equatable, Sendable {
  /// libcrypto does not have the algorithm, or may not use it.
  case missing(algorithm: String)
  /// A key of the wrong length; both in bytes.
  case keyLength(algorithm: String, found: Int, expected: Int)
  /// libcrypto failed; `detail` is its own text.
  case library(operation: String, detail: String)
  /// The kernel has no memory for a key of so many bytes.
  case noMemory(bytes: Int)
}

extension CipherError: SecretMemoryFailure {
  package static func noSecretMemory(bytes: Int) -> CipherError { .noMemory(bytes: bytes) }
}
