package import BlockCore
import CPlatform
import Glibc
package import QCOW2Codec

/// Where a passphrase comes from: never a command line, never the environment [SEC-8].
package enum SecretSource: Sendable, Hashable {
  case file(String)
  /// An open descriptor of this process, read to its end.
  case descriptor(Int32)
  /// A key of type "user" in the keyrings of the process or of the user.
  case keyring(String)

  /// The longest passphrase in bytes; nothing longer is a passphrase.
  package static let limit = 1 << 20

  /// Reads all of it.
  ///
  /// Every byte counts, a newline at the end too: that is how `qemu-img --object secret,file=` and
  /// `cryptsetup --key-file` have it, so that one file serves all three.
  package func read() throws(SecretError) -> Secret {
    do throws(SecretError.Problem) {
      switch self {
      case .file(let path): return try Self.readFile(path)
      case .descriptor(let descriptor): return try Self.readAll(descriptor)
      case .keyring(let description): return try Self.readKey(description)
      }
    } catch { throw SecretError(source: self, problem: error) }
  }

  private static func readFile(_ path: String) throws(SecretError.Problem) -> Secret {
    let descriptor = unsafe qublk_open_file(path, O_RDONLY, 0)
    if descriptor < 0 { throw .open(Errno(errno)) }
    defer { close(descriptor) }
    return try readAll(descriptor)
  }

  /// The bytes go from the kernel to locked memory, and nowhere else.
  private static func readAll(_ descriptor: Int32) throws(SecretError.Problem) -> Secret {
    var count = 0
    let whole = try unsafe Secret(count: limit + 1) { target throws(SecretError.Problem) in
      while count < target.count {
        let done = unsafe Glibc.read(
          descriptor, UnsafeMutableRawBufferPointer(rebasing: target[count...]).baseAddress,
          target.count - count)
        if done < 0 && errno == EINTR { continue }
        if done < 0 { throw .read(Errno(errno)) }
        if done == 0 { return }
        count += done
      }
      throw .tooLong
    }
    if count == 0 { throw .empty }
    return try prefix(of: whole, count)
  }

  private static func readKey(_ description: String) throws(SecretError.Problem) -> Secret {
    let key = unsafe qublk_key_find(description)
    if key < 0 { throw .open(Errno(-key)) }
    var count = 0
    let whole = try unsafe Secret(count: limit) { target throws(SecretError.Problem) in
      count = unsafe qublk_key_read(key, target.baseAddress, target.count)
      if count < 0 { throw .read(Errno(Int32(-count))) }
      if count > target.count { throw .tooLong }
    }
    if count == 0 { throw .empty }
    return try prefix(of: whole, count)
  }

  private static func prefix(
    of whole: Secret, _ count: Int
  ) throws(SecretError.Problem) -> Secret {
    unsafe try whole.withBytes { (bytes) throws(SecretError.Problem) in
      unsafe try Secret(
        copying: UnsafeRawBufferPointer(rebasing: bytes[..<count]),
        failingWith: SecretError.Problem.self)
    }
  }
}

/// Why a passphrase could not be had; carries nothing of it.
package struct SecretError: Error, Equatable, Sendable {
  package enum Problem: Error, Equatable, Sendable {
    case open(Errno)
    case read(Errno)
    case empty
    case tooLong
    /// Base64 was wanted.
    case notBase64
    /// The kernel has no memory for so many bytes.
    case noMemory(bytes: Int)
  }

  package let source: SecretSource
  package let problem: Problem

  /// The error line after "qublk: ".
  package var message: String { "\(source.name): \(problem.text)" }
}

extension SecretError.Problem: SecretMemoryFailure {
  package static func noSecretMemory(bytes: Int) -> SecretError.Problem { .noMemory(bytes: bytes) }
}

extension SecretSource {
  fileprivate var name: String {
    switch self {
    case .file(let path): path
    case .descriptor(let descriptor): "file descriptor \(descriptor)"
    case .keyring(let description): "key \"\(description)\""
    }
  }
}

extension SecretError.Problem {
  fileprivate var text: String {
    switch self {
    case .open(let errno): "cannot open the secret: \(errno)"
    case .read(let errno): "cannot read the secret: \(errno)"
    case .empty: "the secret is empty"
    case .tooLong: "the secret is longer than \(SecretSource.limit) bytes"
    case .notBase64: "the secret is not base64"
    case .noMemory(let bytes): "no memory for a secret of \(bytes) bytes"
    }
  }
}
