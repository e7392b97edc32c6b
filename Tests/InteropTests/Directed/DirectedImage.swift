import BlockCore
import DiskImages
import QCOW2Engine
import TestTools

/// An image of a directed test: made by qemu-img, with contents by qemu-io, and a shadow.
struct DirectedImage {
  let scratch: Scratch
  var disk: MatrixDisk
  let size: UInt64

  /// Makes the image upon a backing file that is there; `options` are without encryption.
  init(
    _ options: String, size: UInt64, cipher: MatrixCase.Cipher = .plain,
    backing: (name: String, format: String, cipher: MatrixCase.Cipher)? = nil,
    in scratch: Scratch
  ) throws {
    self.scratch = scratch
    self.size = size
    disk = MatrixDisk(
      path: scratch.file("image.qcow2"), ciphers: [cipher, backing?.cipher ?? .plain])
    var words = ["qemu-img", "create", "-q"] + MatrixDisk.secret + ["-f", "qcow2", "-u"]
    var options = options
    if cipher != .plain {
      options += ",encrypt.format=\(cipher),encrypt.key-secret=secret"
    }
    if cipher == .luks { options += ",encrypt.iter-time=10" }
    words += ["-o", options]
    if let backing { words += ["-b", backing.name, "-F", backing.format] }
    try mustRunQEMU(words + [disk.path, String(size)])
  }

  private init(_ original: DirectedImage, _ disk: MatrixDisk) {
    scratch = original.scratch
    size = original.size
    self.disk = disk
  }

  /// The same image once more, in the same directory.
  func copy(_ name: String) throws -> DirectedImage {
    DirectedImage(self, try disk.copy(to: scratch.file(name)))
  }

  /// The guest's view now.
  func shadow(_ name: String = "shadow.raw") throws -> Shadow {
    try disk.convert(to: scratch.file(name))
    return try Shadow(scratch.file(name), size: size)
  }

  /// Carries out requests one by one with our engine, then reads all.
  func perform(
    _ operations: [GuestOperation], _ shadow: Shadow, _ random: inout SeededGenerator,
    _ change: (inout ImageOptions) -> Void = { _ in }
  ) throws {
    var options = disk.options(readOnly: false)
    change(&options.engine)
    try withImage(options, &random) { session in
      for operation in operations { try await session.perform(operation, slot: 0, shadow) }
      try await session.verify(shadow)
    }
  }

  /// Throws unless qemu-img finds the image in order, and to read as the shadow.
  func judge(_ shadow: Shadow) throws {
    try disk.requireClean("the image")
    try disk.convert(to: scratch.file("now.raw"))
    if let difference = try Qemu.rawDifference(scratch.file("now.raw"), shadow.path) {
      throw Mismatch(description: "QEMU sees something else: \(difference)")
    }
  }
}

extension GuestOperation {
  static func write(_ offset: UInt64, _ length: UInt64, stamp: UInt64 = 0x5a5) -> GuestOperation {
    GuestOperation(kind: .write, range: offset..<(offset + length), stamp: stamp)
  }

  static func zero(
    _ offset: UInt64, _ length: UInt64, keeps: Bool = false
  ) -> GuestOperation {
    GuestOperation(
      kind: .writeZeroes, range: offset..<(offset + length), keepsAllocation: keeps)
  }

  static func discard(_ offset: UInt64, _ length: UInt64) -> GuestOperation {
    GuestOperation(kind: .discard, range: offset..<(offset + length))
  }
}
