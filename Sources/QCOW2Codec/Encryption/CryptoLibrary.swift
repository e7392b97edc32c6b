import CCrypto

/// What the calls into libcrypto share.
enum CryptoLibrary {
  /// The error that made the last call fail; the queue of errors is empty afterwards.
  static func failure(_ operation: String) -> CipherError {
    let code = ERR_get_error()
    ERR_clear_error()
    var text = [CChar](repeating: 0, count: 256)
    unsafe ERR_error_string_n(code, &text, text.count)
    let end = text.firstIndex(of: 0) ?? text.endIndex
    let detail = String(decoding: text[..<end].map { UInt8(bitPattern: $0) }, as: UTF8.self)
    return .library(operation: operation, detail: code == 0 ? "no reason given" : detail)
  }

  /// Whether the bytes are equal; takes the same time wherever they differ.
  static func areEqual(_ one: UnsafeRawBufferPointer, _ other: UnsafeRawBufferPointer) -> Bool {
    guard one.count == other.count else { return false }
    return unsafe CRYPTO_memcmp(one.baseAddress, other.baseAddress, one.count) == 0
  }
}
