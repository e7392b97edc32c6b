import DiskImages
import QCOW2Codec
import TestTools

/// An image of the matrix, and how either side opens it.
struct MatrixDisk: Sendable {
  let path: String
  /// The external data file that goes with this copy of the image; nil if there is none.
  var dataFile: String?
  /// How the image is encrypted, and its backing file, and so on.
  var ciphers: [MatrixCase.Cipher]

  static let passphrase = "open sesame"
  /// What programs of QEMU are told before `--image-opts`.
  static let secret = ["--object", "secret,id=secret,data=\(passphrase)"]

  /// The image in QEMU's words.
  var qemu: String {
    var words = ["driver=qcow2", "discard=unmap", "file.driver=file", "file.filename=\(path)"]
    if let dataFile { words += ["data-file.driver=file", "data-file.filename=\(dataFile)"] }
    for (layer, cipher) in ciphers.enumerated() where cipher != .plain {
      let prefix = String(repeating: "backing.", count: layer)
      words += ["\(prefix)encrypt.format=\(cipher)", "\(prefix)encrypt.key-secret=secret"]
    }
    return words.joined(separator: ",")
  }

  /// The image in ours.
  func options(readOnly: Bool) -> DiskImageOptions {
    var options = DiskImageOptions(path: path, readOnly: readOnly)
    options.dataFile = dataFile
    var secrets: [Int: Secret] = [:]
    for (layer, cipher) in ciphers.enumerated() where cipher != .plain {
      secrets[layer] = try? Secret(count: Self.passphrase.utf8.count) {
        (target) throws(CipherError) in target.copyBytes(from: Self.passphrase.utf8)
      }
    }
    options.secrets = LayerSecrets(byLayer: secrets)
    return options
  }

  /// Copies the image and its data file, holes included; backing files stay where they are.
  func copy(to path: String) throws -> MatrixDisk {
    let copy = MatrixDisk(
      path: path, dataFile: dataFile.map { _ in path + ".data" }, ciphers: ciphers)
    try mustRun("cp", "--sparse=always", self.path, copy.path)
    if let dataFile, let target = copy.dataFile {
      try mustRun("cp", "--sparse=always", dataFile, target)
    }
    return copy
  }

  // MARK: QEMU's judgement

  /// Runs `qemu-img` with the image at the end of the words.
  @discardableResult
  func image(_ words: String...) throws -> String {
    try mustRunQEMU(
      ["qemu-img", words[0]] + Self.secret + words.dropFirst() + ["--image-opts", qemu])
  }

  /// Runs `qemu-io` commands in one process.
  func io(_ commands: [String]) throws {
    try mustRunQEMUIO(
      Self.secret + commands.flatMap { ["-c", $0] } + ["--image-opts", qemu])
  }

  /// Throws if `qemu-img check` finds errors or leaks.
  func requireClean(_ what: String) throws {
    let result = try runQEMU(["qemu-img", "check"] + Self.secret + ["--image-opts", qemu])
    if result.succeeded { return }
    throw Mismatch(
      description: "qemu-img check of \(what): status \(result.status): "
        + result.output.suffix(1500))
  }

  /// Throws if the guest's view of two images is not the same.
  func requireSame(as other: MatrixDisk, _ what: String) throws {
    let result = try runQEMU(
      ["qemu-img", "compare"] + Self.secret + ["--image-opts", qemu, other.qemu])
    if result.succeeded { return }
    throw Mismatch(description: "qemu-img compare of \(what): \(result.output)")
  }

  /// Writes the guest's view, or that of a snapshot, to a raw file.
  func convert(to raw: String, snapshot: String? = nil) throws {
    let choice = snapshot.map { ["-l", "snapshot.name=\($0)"] } ?? []
    try mustRunQEMU(
      ["qemu-img", "convert"] + Self.secret + choice + ["-O", "raw", "--image-opts", qemu, raw])
  }
}
