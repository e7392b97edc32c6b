package import DiskImages
import HostFiles
import QCOW2Engine

/// What to open, and how: the options of `qublk io` and of its `open` command.
package struct IOOpening: Sendable {
  /// What the image is.
  package enum Format: String { case qcow2, raw }

  /// QEMU's cache modes, as far as the engine has them.
  package enum Cache: String {
    case none, writeback, writethrough, directsync, unsafe

    /// The host's page cache is not used.
    package var isDirect: Bool { self == .none || self == .directsync }
    /// Every write is durable when it is done.
    package var writesThrough: Bool { self == .writethrough || self == .directsync }
  }

  /// As it was given.
  package var path: String?
  /// Never guessed.
  package var format = Format.qcow2
  /// Nothing is written.
  package var isReadOnly = false
  /// How the host keeps what is read and written.
  package var cache = Cache.writeback
  /// Discards do something.
  var discards = true
  /// What is read from backing files is kept.
  package var copiesOnRead = false
  /// No locks are taken.
  package var sharesByForce = false
  /// Memory for data begins off every alignment.
  package var misaligns = false
  /// What the options common to all commands say.
  package var disk = DiskImageOptions(path: "")
  /// The name of the secret that unlocks the image.
  var keySecret: String?

  /// Nothing yet; every option is what it is by default.
  package init() {}

  /// Sets the cache mode by its name.
  package mutating func setCache(_ mode: String) throws(IOFailure) {
    guard let cache = Cache(rawValue: mode) else {
      throw .openOption("Invalid cache option: \(mode)")
    }
    self.cache = cache
  }

  /// Sets what discards do, by a word.
  package mutating func setDiscard(_ mode: String) throws(IOFailure) {
    switch mode {
    case "unmap", "on": discards = true
    case "ignore", "off": discards = false
    default: throw .openOption("Invalid discard option: \(mode)")
    }
  }

  /// Sets the format by its name.
  package mutating func setFormat(_ name: String) throws(IOFailure) {
    guard let format = Format(rawValue: name) else {
      throw .openOption("Unknown driver '\(name)': expected qcow2 or raw")
    }
    self.format = format
  }

  /// How to open the disk; `secrets` are those that can be named.
  package func diskOptions(_ secrets: [ObjectSecret]) throws(IOFailure) -> DiskImageOptions {
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
