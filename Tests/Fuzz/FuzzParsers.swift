import BlockCore
import Glibc
import QCOW2Codec
import QCOW2Engine
import QCOW2Format
import QCOW2Tools

/// Everything that is read of an image before it is opened, by the engine and by the tools.
func fuzzHeader(_ input: [UInt8]) {
  let image = MemoryBytes(input)
  if let info = try? ImageInfo(reading: image, path: "dir/image", allocatedBytes: 4096) {
    _ = info.report.humanText
    _ = info.report.jsonText
  }
  runBlocking { () async -> Void in
    let file = SparseFile(input, isReadOnly: true)
    _ = try? await HeaderCluster.read(file)
    _ = await FuzzImage(input).open(file, readOnly: true)
  }
  precondition(image.bytes == input, "reading changed the image")
}

private let passphrase: Secret = {
  do {
    return try Secret(count: 4) { (target) throws(CipherError) in
      target.copyBytes(from: Array("fuzz".utf8))
    }
  } catch { fatalError("the fuzzer's passphrase: \(error)") }
}()

/// Writes valid headers with the fewest iterations, cut behind the first key slot.
func writeLUKSSeeds(_ prefix: String) {
  let suites: [(AESKeyLength, CipherMode, IVGenerator, HashAlgorithm)] = [
    (.aes128, .cbc, .plain64, .sha256), (.aes128, .cbc, .essiv(.sha256), .sha1),
    (.aes128, .ecb, .plain, .sha512), (.aes128, .xts, .plain64, .sha256),
    (.aes256, .ctr, .plain64, .sha256),
  ]
  for (number, suite) in suites.enumerated() {
    var options = LUKSFormat.Options()
    (options.cipher, options.mode, options.iv, options.hash) = suite
    options.iterationMilliseconds = 0
    guard let made = try? LUKSFormat.create(options, passphrase: passphrase),
      let file = fopen("\(prefix)\(number)", "w")
    else { continue }
    fwrite(made.area, 1, min(made.area.count, 140_000), file)
    fclose(file)
  }
}

/// Parses and unlocks a LUKS header; few iterations are allowed, so that an input takes no seconds.
func fuzzLUKS(_ input: [UInt8]) {
  var limits = LUKSLimits()
  limits.iterations = 1500
  // Room for the key material of every cipher.
  let whole = input + [UInt8](repeating: 0, count: max(0, 300_000 - input.count))
  for area in [input, whole] {
    area.withUnsafeBytes { area in
      guard
        let cipher = try? LUKSCipher(unlocking: area, passphrase: passphrase, limits: limits)
      else { return }
      transform(cipher)
    }
  }
}

private func transform(_ cipher: LUKSCipher) {
  let plain = IOBuffer(count: 1024)
  let secret = IOBuffer(count: 1024)
  defer { withExtendedLifetime((plain, secret)) {} }
  for sector in [0, UInt64(UInt32.max), UInt64.max - 1] {
    cipher.encrypt(plain.base, into: secret.base, count: 1024, firstSector: sector)
    cipher.decrypt(secret.base, count: 1024, firstSector: sector)
    for index in 0..<1024 {
      precondition(secret.base.load(fromByteOffset: index, as: UInt8.self) == 0, "wrong plain text")
    }
  }
}

/// The first byte chooses the library and the cluster size; the rest is read as a compressed
/// cluster, and is compressed as the start of a plain one.
///
/// Deflate is read by zlib and by libdeflate: where zlib reads a cluster, the other must read the
/// same.
func fuzzPayload(_ input: [UInt8]) {
  guard let control = input.first, input.count > 1 else { return }
  let kind: CompressionKind = control & 1 == 0 ? .zlib : .zstd
  let size = 512 << Int(control >> 1 & 7)
  let codec = ClusterCodec(kind, clusterSize: size, inflate: .zlib)
  let fastest = ClusterCodec(kind, clusterSize: size)
  // Heap blocks of exactly these lengths: the sanitizer sees the first byte too many.
  let stream = Array(input.dropFirst())
  if let cluster = decompress(stream, codec) {
    precondition(decompress(stream, fastest) == cluster, "two libraries, two clusters")
  } else {
    _ = decompress(stream, fastest)
  }
  let plain = Array((stream + [UInt8](repeating: 7, count: size)).prefix(size))
  var packed = [UInt8](repeating: 0, count: size)
  let count = plain.withUnsafeBytes { source in
    packed.withUnsafeMutableBytes { codec.compress(source, into: $0) }
  }
  guard let count else { return }
  precondition(count < size, "a compressed cluster that is no smaller")
  for codec in [codec, fastest] {
    precondition(decompress(Array(packed[..<count]), codec) == plain, "another cluster came back")
  }
}

/// One cluster; nil if the stream is refused.
private func decompress(_ stream: [UInt8], _ codec: ClusterCodec) -> [UInt8]? {
  var cluster = [UInt8](repeating: 0, count: codec.clusterSize)
  return stream.withUnsafeBytes { source in
    cluster.withUnsafeMutableBytes { target in
      (try? codec.decompress(source, into: target)) != nil
    }
  } ? cluster : nil
}
