/// The block cipher of an image: AES, by the length of its key.
public enum AESKeyLength: Int, CaseIterable, Sendable {
  case aes128 = 16
  case aes192 = 24
  case aes256 = 32

  var bits: Int { rawValue * 8 }
}

/// How the blocks of a sector depend on each other.
public enum CipherMode: String, CaseIterable, Sendable {
  case ecb, cbc, ctr, xts
}

/// What the initialisation vector of a sector is made of.
public enum IVGenerator: Equatable, Sendable {
  /// The low 32 bits of the sector number, little-endian.
  case plain
  /// The sector number, little-endian.
  case plain64
  /// The sector number, encrypted with a hash of the key.
  case essiv(HashAlgorithm)
}

/// The hashes that LUKS headers name.
public enum HashAlgorithm: String, CaseIterable, Sendable {
  case md5, sha1, sha224, sha256, sha384, sha512, ripemd160

  /// In bytes.
  var digestLength: Int {
    switch self {
    case .md5: 16
    case .sha1, .ripemd160: 20
    case .sha224: 28
    case .sha256: 32
    case .sha384: 48
    case .sha512: 64
    }
  }

  /// The name that libcrypto knows it by.
  var libraryName: String {
    switch self {
    case .md5: "MD5"
    case .sha1: "SHA1"
    case .sha224: "SHA224"
    case .sha256: "SHA256"
    case .sha384: "SHA384"
    case .sha512: "SHA512"
    case .ripemd160: "RIPEMD160"
    }
  }
}

/// A block cipher, its mode and its way to make initialisation vectors.
public struct CipherSuite: Equatable, Sendable {
  public let cipher: AESKeyLength
  public let mode: CipherMode
  public let iv: IVGenerator
  /// XTS is put together from single blocks: libcrypto has none with AES-192.
  var composesXTS: Bool

  public init(_ cipher: AESKeyLength, _ mode: CipherMode, _ iv: IVGenerator) {
    self.cipher = cipher
    self.mode = mode
    self.iv = iv
    composesXTS = mode == .xts && cipher == .aes192
  }

  /// In bytes; XTS has one key for the data and one for the tweak.
  public var keyLength: Int { cipher.rawValue * (mode == .xts ? 2 : 1) }

  /// The mode that libcrypto is asked for.
  var libraryMode: CipherMode { composesXTS ? .ecb : mode }
}
