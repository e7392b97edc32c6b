import DiskImages
import HostFiles
import QCOW2Engine

/// What to open, and how: the options of `qublk io` and of its `open` command.
struct IOOpening: Sendable {
  enum Format: String { case qcow2, raw }

  /// QEMU's cache modes, as far as the engine has them.
  enum Cache: String {
    case none, writeback, writethrough, directsync, unsafe

    var isDirect: Bool { self == .none || self == .directsync }
    /// Every write is durable when it is done.
    var writesThrough: Bool { self == .writethrough || self == .directsync }
  }

  var path: String?
  var format = Format.qcow2
  var isReadOnly = false
  var cache = Cache.writeback
  /// Discards do something.
  var discards = true
  var copiesOnRead = false
  /// No locks are taken.
  var sharesByForce = false
  /// Memory for data begins off every alignment.
  var misaligns = false
  /// What the options common to all commands say.
  var disk = DiskImageOptions(path: "")
  /// The name of the secret that unlocks the image.
  var keySecret: String?

  mutating func setCache(_ mode: String) throws(IOFailure) {
    guard let cache = Cache(rawValue: mode) else {
      throw .openOption("Invalid cache option: \(mode)")
    }
    self.cache = cache
  }

  mutating func setDiscard(_ mode: String) throws(IOFailure) {
    switch mode {
    case "unmap", "on": discards = true
    case "ignore", "off": discards = false
    default: throw .openOption("Invalid discard option: \(mode)")
    }
  }

  mutating func setFormat(_ name: String) throws(IOFailure) {
    guard let format = Format(rawValue: name) else {
      throw .openOption("Unknown driver '\(name)': expected qcow2 or raw")
    }
    self.format = format
  }

  /// How to open the disk; `secrets` are those that can be named.
  func diskOptions(_ secrets: [ObjectSecret]) throws(IOFailure) -> DiskImageOptions {
    var options = disk
    if let keySecret {
      guard let secret = secrets.secret(keySecret) else {
        throw .openOption("No secret with id '\(keySecret)'")
      }
      options.secrets = LayerSecrets(byLayer: [0: secret])
    }
    options.path = path ?? ""
    options.name = options.path
    options.readOnly = isReadOnly
    options.engine.workers = 1
    options.engine.slotsPerWorker = IOSlots.count
    options.engine.discardsToHost = discards
    options.engine.copyOnRead = copiesOnRead
    options.mode = cache.isDirect ? .direct : .buffered
    options.locks = sharesByForce ? .none : .qemu
    return options
  }
}

extension IOParser {
  static func open(_ words: [String], _ command: IOCommandSpec) throws(IOFailure) -> IOAction {
    let words = try IOWords(words, flags: "rCnkU", valued: "itdo", of: command)
    var opening = IOOpening()
    opening.isReadOnly = words.has("r")
    opening.copiesOnRead = words.has("C")
    opening.sharesByForce = words.has("U")
    if words.has("n") { opening.cache = .none }
    if let mode = words.value("t") { try opening.setCache(mode) }
    if let mode = words.value("d") { try opening.setDiscard(mode) }
    for option in words.options where option.letter == "o" {
      try opening.apply(list: option.value ?? "")
    }
    guard words.operands.count < 2 else { throw .usage(command) }
    if let path = words.operands.first { try opening.setPath(path) }
    return .open(opening)
  }
}
