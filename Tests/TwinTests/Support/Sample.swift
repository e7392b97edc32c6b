import Glibc
import Synchronization
import TestTools

/// An image that QEMU has made, alone in a directory with all it refers to.
struct Sample: CustomStringConvertible, Sendable {
  /// The image's name in its directory.
  static let name = "image.qcow2"
  static let passphrase = "twins"

  let directory: TemporaryDirectory
  let shape: SampleShape
  let seed: UInt64

  var description: String { "\(shape) seed=\(seed)" }
  var path: String { directory.path }
  var isEncrypted: Bool { shape.cipher != .plain }

  /// The options that define the secret of an encrypted image; none for another.
  var object: [String] {
    isEncrypted ? ["--object", "secret,id=sec0,data=\(Self.passphrase)"] : []
  }
  /// The image as `--image-opts` takes it, with the secret if there is one.
  var options: String {
    "driver=qcow2,file.filename=\(Self.name)" + (isEncrypted ? ",encrypt.key-secret=sec0" : "")
  }
  /// The words that name the image, and unlock it if that is needed.
  var named: [String] { isEncrypted ? object + ["--image-opts", options] : [Self.name] }

  /// Makes an image of this shape; its contents follow from the seed.
  static func make(_ shape: SampleShape, seed: UInt64) throws -> Sample {
    let sample = Sample(
      directory: try TemporaryDirectory(in: "/dev/shm"), shape: shape, seed: seed)
    var maker = SampleMaker(sample)
    try maker.make()
    return sample
  }

  /// The same files in another directory.
  func copy() throws -> Sample {
    let copy = Sample(directory: try TemporaryDirectory(in: "/dev/shm"), shape: shape, seed: seed)
    try mustRun("cp", "-a", "--sparse=always", "\(path)/.", copy.path)
    return copy
  }

  /// The directories of ``all``, which live as long as the process.
  private static let shared = Mutex<[String]>([])

  /// Removes the files of ``all``; for the end of the process.
  static func removeShared() {
    let paths = shared.withLock { $0 }
    if getenv("QUBLK_KEEP") == nil, !paths.isEmpty { _ = try? run(["rm", "-rf"] + paths) }
  }

  /// The images that commands only read: all corners, and some of any shape.
  static let all: [Sample] = {
    var random = SeededGenerator(seed: TwinCount.seed)
    let others = (0..<testSetting("QUBLK_SAMPLES", default: 12)).map { _ in
      SampleShape.random(&random)
    }
    return (SampleShape.corners + others).compactMap { shape in
      let seed = random.next()
      do {
        let sample = try make(shape, seed: seed)
        shared.withLock { $0.append(sample.path) }
        return sample
      } catch {
        print("twins: no sample of \(shape), seed \(seed): \(error)")
        return nil
      }
    }
  }()

  /// Those of ``all`` that this run tries where each would take too long: with QUBLK_SHARE=N one of N.
  static var tried: [Sample] {
    let parts = max(1, testSetting("QUBLK_SHARE", default: 1))
    let chosen = Int(TwinCount.seed % UInt64(parts))
    return all.indices.filter { $0 % parts == chosen }.map { all[$0] }
  }

  /// Some of ``all`` that a condition holds for, which others each time; of many only a share.
  static func some(_ count: Int, _ salt: UInt64, _ holds: (SampleShape) -> Bool = { _ in true })
    -> [Sample]
  {
    var random = SeededGenerator(seed: TwinCount.seed &+ salt)
    let parts = max(1, testSetting("QUBLK_SHARE", default: 1))
    let most = (count + parts - 1) / parts
    return Array(all.filter { holds($0.shape) }.shuffled(using: &random).prefix(most))
  }
}
