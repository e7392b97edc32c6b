package import QCOW2Codec

extension CipherError {
  /// What failed and why, in the form of an error line after the object's name.
  package var text: String {
    switch self {
    case .missing(let algorithm): "libcrypto does not have \(algorithm)"
    case .keyLength(let algorithm, let found, let expected):
      "the key for \(algorithm) has \(found) bytes, expected \(expected)"
    case .library(let operation, let detail): "libcrypto: \(operation): \(detail)"
    case .noMemory(let bytes): "no memory for a key of \(bytes) bytes"
    }
  }
}

extension LUKSError {
  /// What failed and why, in the form of an error line after the object's name.
  package var text: String {
    switch self {
    case .truncated(let found, let expected):
      "the LUKS header is truncated: needs \(expected) bytes, there are \(found)"
    case .badField(let name, let found, let allowed):
      "LUKS header: \(name) is \(found), expected \(allowed)"
    case .noActiveSlot: "the LUKS header has no key slot in use: nothing can unlock the image"
    case .wrongPassphrase: "the passphrase unlocks none of the LUKS key slots"
    case .cipher(let error): error.text
    case .noRandomness: "no random numbers from the kernel"
    }
  }
}
