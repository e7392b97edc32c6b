import HostFiles
import QCOW2Codec
import QCOW2Engine
import QCOW2Format

/// Why an option that says what to open, or how, cannot be used; in QEMU's words where it has some.
package struct OpeningError: Error, Equatable, Sendable {
  /// What is wrong, without the name of the program.
  package let text: String

  /// An error of this text.
  package init(_ text: String) { self.text = text }
}

/// QEMU's cache modes, as far as the engine has them.
package enum CacheMode: String, Sendable, CaseIterable {
  case none, writeback, writethrough, directsync, unsafe

  /// The host's page cache is not used.
  package var isDirect: Bool { self == .none || self == .directsync }
  /// Every write is durable when it is done.
  package var writesThrough: Bool { self == .writethrough || self == .directsync }
}

/// What to open, and how, in QEMU's language: a name or a list of options, and the switches of a command.
///
/// All commands take images by this one rule. Nothing is opened before ``diskOptions(_:)`` is used.
package struct DiskOpening: Sendable {
  /// As it was given, without "file:".
  package var path: String?
  /// Nil if nothing says it.
  package var format: DiskFormat?
  /// Nothing is written.
  package var isReadOnly = false
  /// How the host keeps what is read and written.
  package var cache = CacheMode.writeback
  /// Discards do something.
  package var discards = true
  /// What is read from backing files is kept.
  package var copiesOnRead = false
  /// No locks are taken.
  package var sharesByForce = false
  /// No locks are taken, and the image is written all the same.
  package var ignoresLocks = false
  /// Writes that are nothing but zeros are looked for.
  package var detectZeroes = DetectZeroes.off
  /// Writes go to an overlay that is thrown away (`-s`).
  package var usesOverlay = false
  /// Memory for data begins off every alignment.
  package var misaligns = false
  /// The requests in flight for each worker.
  package var slots = 8
  /// The threads that serve the disk.
  package var workers = 1
  /// What the options common to all commands say.
  package var disk = DiskImageOptions(path: "")
  /// The names of the secrets that unlock the layers of the chain, by depth.
  private var keySecrets: [Int: String] = [:]

  /// Nothing yet; every option is what it is by default.
  package init() {}

  /// Takes a name from the command line: a path, `file:PATH`, or `json:{…}`.
  ///
  /// Every other name is a path; no other prefix has a meaning.
  package mutating func setName(_ name: String) throws(OpeningError) {
    if name.hasPrefix("json:") {
      try apply(json: String(name.dropFirst("json:".count)))
    } else {
      try setPath(name)
    }
  }

  /// Takes the path that was given apart from the list.
  package mutating func setPath(_ path: String) throws(OpeningError) {
    guard self.path == nil else {
      throw OpeningError("\(path): the file is named by \"file.filename\", too")
    }
    self.path = FileReference.commandLinePath(path)
  }

  /// Sets the cache mode by its name.
  package mutating func setCache(_ mode: String) throws(OpeningError) {
    guard let cache = CacheMode(rawValue: mode) else {
      throw OpeningError("Invalid cache option: \(mode)")
    }
    self.cache = cache
  }

  /// Sets the cache mode of what is only read, by its name.
  package mutating func setSourceCache(_ mode: String) throws(OpeningError) {
    guard let cache = CacheMode(rawValue: mode) else {
      throw OpeningError("Invalid source cache option: \(mode)")
    }
    self.cache = cache
  }

  /// Sets what discards do, by a word.
  package mutating func setDiscard(_ mode: String) throws(OpeningError) {
    switch mode {
    case "unmap", "on": discards = true
    case "ignore", "off": discards = false
    default: throw OpeningError("Invalid discard option: \(mode)")
    }
  }

  /// Sets the format by its name.
  package mutating func setFormat(_ name: String) throws(OpeningError) {
    guard let format = DiskFormat(rawValue: name), format != .null else {
      throw OpeningError("Unknown driver '\(name)': expected qcow2 or raw")
    }
    self.format = format
  }

  /// Names the secret of the image at a depth of the chain.
  mutating func setKeySecret(_ id: String, depth: Int) { keySecrets[depth] = id }

  /// Puts an overlay over the disk: what was said of a layer is now said of the one below.
  mutating func lower(below overlay: String, _ format: DiskFormat) {
    path = overlay
    self.format = .qcow2
    isReadOnly = false
    disk.backingFormats.insert(format == .raw ? .raw : .qcow2, at: 0)
    disk.backingPaths = Dictionary(
      uniqueKeysWithValues: disk.backingPaths.map { ($0.key + 1, $0.value) })
    keySecrets = Dictionary(uniqueKeysWithValues: keySecrets.map { ($0.key + 1, $0.value) })
  }

  /// How to open the disk.
  ///
  /// - Parameter secrets: Those that can be named.
  /// - Returns: The options, with the secrets.
  /// - Throws: If no secret has a name that is asked for.
  package func diskOptions(_ secrets: [ObjectSecret]) throws(OpeningError) -> DiskImageOptions {
    var options = disk
    if !keySecrets.isEmpty {
      var found: [Int: Secret] = [:]
      for (depth, id) in keySecrets {
        guard let secret = secrets.secret(id) else {
          throw OpeningError("No secret with id '\(id)'")
        }
        found[depth] = secret
      }
      options.secrets = LayerSecrets(byLayer: found)
    }
    options.path = path ?? ""
    options.name = options.path
    options.readOnly = isReadOnly
    options.engine.workers = workers
    options.engine.slotsPerWorker = slots
    options.engine.discardsToHost = discards
    options.engine.copyOnRead = copiesOnRead
    options.mode = cache.isDirect ? .direct : .buffered
    if sharesByForce { options.locks = .none } else if ignoresLocks { options.locks = .ignored }
    if detectZeroes != .off { options.detectZeroes = detectZeroes }
    return options
  }
}
