import QCOW2Codec

/// What `amend` is to change of an image; nil leaves it as it is.
package struct AmendOptions: Equatable, Sendable {
  /// 2 or 3.
  package var version: UInt32?
  package var lazyRefcounts: Bool?
  /// log2 of the refcount width: 0 to 6.
  package var refcountOrder: Int?
  /// The name of the external data file; empty for none in the image.
  package var dataFile: String?
  package var hasRawDataFile: Bool?
  package var backingFile: String?
  package var backingFormat: String?
  /// The virtual size in bytes; for a job of its own.
  package var size: UInt64?
  /// The change of key slots; nil for none.
  package var keySlots: KeySlotWords?

  /// Nothing is to change.
  package init() {}

  /// Whether anything but the size and the way down to version 2 is to change.
  package var changesImage: Bool {
    var rest = self
    rest.size = nil
    return rest != AmendOptions()
  }
}

/// The `encrypt.` options of `amend` as they were written.
package struct KeySlotWords: Equatable, Sendable {
  package enum State: String, CaseIterable, Sendable { case active, inactive }

  package var state: State?
  /// The id of the secret that the slots get; empty to erase.
  package var newSecret: String?
  /// The id of the secret that the slots have.
  package var oldSecret: String?
  package var slot: UInt64?
  package var milliseconds: Int?
}

extension AmendOptions {
  /// What `-o help` prints, in qemu-img's words.
  package static let helpText = """
    Amend options for 'qcow2':
      backing_file=<str>     - File name of a base image
      backing_fmt=<str>      - Image format of the base image
      compat=<str>           - Compatibility level (v2 [0.10] or v3 [1.1])
      data_file=<str>        - File name of an external data file
      data_file_raw=<bool (on/off)> - The external data file must stay valid as a raw image
      encrypt.iter-time=<num> - Time to spend in PBKDF in milliseconds
      encrypt.keyslot=<num>  - Select a single keyslot to modify explicitly
      encrypt.new-secret=<str> - New secret to set in the matching keyslots. Empty string to erase
      encrypt.old-secret=<str> - Select all keyslots that match this password
      encrypt.state=<str>    - Select new state of affected keyslots (active/inactive)
      lazy_refcounts=<bool (on/off)> - Postpone refcount updates
      refcount_bits=<num>    - Width of a reference count entry in bits
      size=<size>            - Virtual disk size

    """

  /// Options that `create` has and `amend` has not.
  private static let creationOnly: Set<String> = [
    "cluster_size", "compression_type", "encryption", "extended_l2", "preallocation",
    "encrypt.format", "encrypt.key-secret", "encrypt.cipher-alg", "encrypt.cipher-mode",
    "encrypt.ivgen-alg", "encrypt.ivgen-hash-alg", "encrypt.hash-alg", "encrypt.detached-header",
  ]

  /// Reads the options of the command line; a later one replaces an earlier one of the same name.
  ///
  /// - Parameter lists: Each a comma list of `name=value`.
  /// - Throws: ``ToolError/option(_:)`` or ``ToolError/amend(_:)`` at the first that cannot be used.
  package init(lists: [String]) throws(ToolError) {
    self.init()
    for list in lists {
      let pairs: [(name: String, value: String)]
      do throws(OptionError) { pairs = try CreateOptions.split(list) } catch {
        throw .option(error)
      }
      for (name, value) in pairs {
        if Self.creationOnly.contains(name) { throw .amend(.onlyForCreation(name)) }
        do throws(OptionError) { try set(name, value) } catch { throw .option(error) }
      }
    }
    if let keySlots, keySlots.state == nil { throw .amend(.keySlot(.stateMissing)) }
  }

  private mutating func set(_ name: String, _ value: String) throws(OptionError) {
    switch name {
    case "compat": version = try CreateOptions.version(value)
    case "refcount_bits": refcountOrder = try CreateOptions.refcountOrder(value)
    case "lazy_refcounts": lazyRefcounts = try CreateOptions.flag(name, value)
    case "data_file": dataFile = value
    case "data_file_raw": hasRawDataFile = try CreateOptions.flag(name, value)
    case "backing_file": backingFile = value
    case "backing_fmt": backingFormat = value
    case "size": size = try CreateOptions.parseSize(value)
    default:
      guard name.hasPrefix("encrypt.") else { throw .unknown(name) }
      var words = keySlots ?? KeySlotWords()
      try words.set(name, value)
      keySlots = words
    }
  }
}

extension KeySlotWords {
  fileprivate mutating func set(_ name: String, _ value: String) throws(OptionError) {
    switch name.dropFirst("encrypt.".count) {
    case "state":
      guard let state = State(rawValue: value) else {
        throw .badValue(name: name, found: value, allowed: "active or inactive")
      }
      self.state = state
    case "new-secret": newSecret = value
    case "old-secret": oldSecret = value
    case "keyslot":
      guard let slot = UInt64(value) else {
        throw .badValue(name: name, found: value, allowed: "a number from 0 to 7")
      }
      self.slot = slot
    case "iter-time":
      guard let milliseconds = Int(value), (0...1_000_000).contains(milliseconds) else {
        throw .badValue(name: name, found: value, allowed: "0 to 1000000 milliseconds")
      }
      self.milliseconds = milliseconds
    default: throw .unknown(name)
    }
  }
}
