import BlockCore
import DiskImages
import HostFiles
import JSON
import QCOW2Engine

/// The request in the state file of a device, so that the device can be served as before when no process is
/// left that knows. Passphrases are not in it, only how many there were.
extension AttachRequest {
  var stored: JSONValue {
    .object([
      .init("path", .string(path)),
      .init("format", .string(format.rawValue)),
      .init("null-size", .string(String(nullSize))),
      .init("queues", .integer(Int64(queues))),
      .init("depth", .integer(Int64(depth))),
      .init("read-only", .bool(isReadOnly)),
      .init("block-size", .integer(Int64(blockSize))),
      .init("zero-copy", .string(zeroCopy.rawValue)),
      .init("zero-copy-slots", Self.number(zeroCopySlots)),
      .init("batch", .bool(batches)),
      .init("poll-limit", .integer(Int64(clamping: pollLimit))),
      .init("scheduler", Self.text(scheduler)),
      .init("dirty-age", .integer(Int64(dirtyAge))),
      .init("on-enospc", noSpace.stored),
      .init("returns-leaks", .bool(returnsLeaks)),
      .init("sandbox", .bool(hasSandbox)),
      .init("disk", disk.stored),
    ])
  }

  private static func number(_ value: Int?) -> JSONValue {
    value.map { .integer(Int64($0)) } ?? .null
  }

  private static func text(_ value: String?) -> JSONValue { value.map { .string($0) } ?? .null }

  /// Reads what ``stored`` wrote; nil if anything is missing or out of its range.
  ///
  /// - Parameters:
  ///   - json: The object.
  ///   - id: The device.
  ///   - version: The version of this program.
  init?(stored json: JSONValue, id: UInt32, version: String) {
    guard let path = json["path"]?.string,
      let format = json["format"]?.string.flatMap(DiskFormat.init),
      let nullSize = json["null-size"]?.string.flatMap({ UInt64($0) }),
      let queues = json["queues"]?.integer, (1...4096).contains(queues),
      let depth = json["depth"]?.integer, (1...4096).contains(depth),
      let isReadOnly = json["read-only"]?.bool,
      let blockSize = json["block-size"]?.integer, blockSize == 512 || blockSize == 4096,
      let zeroCopy = json["zero-copy"]?.string.flatMap(Switch.init),
      let batches = json["batch"]?.bool,
      let pollLimit = json["poll-limit"]?.unsigned,
      let dirtyAge = json["dirty-age"]?.integer, (1...3_600_000).contains(dirtyAge),
      let noSpace = json["on-enospc"].flatMap(NoSpacePolicy.init(stored:)),
      let returnsLeaks = json["returns-leaks"]?.bool,
      var disk = json["disk"].flatMap({ DiskImageOptions(stored: $0) })
    else { return nil }
    guard path.hasPrefix("/") || format == .null else { return nil }
    var slots: Int?
    if let found = json["zero-copy-slots"], found != .null {
      guard let value = found.integer, (1...4096).contains(value) else { return nil }
      slots = Int(value)
    }
    // Programs from before there was a sandbox did not store it.
    var hasSandbox = true
    if let found = json["sandbox"] {
      guard let value = found.bool else { return nil }
      hasSandbox = value
    }
    disk.readOnly = isReadOnly
    disk.engine.workers = Int(queues)
    disk.engine.slotsPerWorker = Int(depth)
    disk.engine.dirtyAgeMilliseconds = Int(dirtyAge)
    self.init(
      path: path, format: format, nullSize: nullSize, disk: disk, id: id, queues: Int(queues),
      depth: Int(depth), isReadOnly: isReadOnly, blockSize: Int(blockSize), zeroCopy: zeroCopy,
      zeroCopySlots: slots, batches: batches, pollLimit: pollLimit,
      scheduler: json["scheduler"]?.string, dirtyAge: Int(dirtyAge), printsJSON: false,
      noSpace: noSpace, returnsLeaks: returnsLeaks,
      hasSandbox: hasSandbox, version: version)
    recovery = .on
  }
}

extension NoSpacePolicy {
  fileprivate var stored: JSONValue {
    switch self {
    case .fail: .string("fail")
    case .hold(nil): .string("hold")
    case .hold(let seconds?): .integer(Int64(seconds))
    }
  }

  fileprivate init?(stored: JSONValue) {
    switch stored {
    case .string("fail"): self = .fail
    case .string("hold"): self = .hold(seconds: nil)
    case .integer(let seconds) where seconds > 0: self = .hold(seconds: Int(seconds))
    default: return nil
    }
  }
}

extension DiskImageOptions {
  fileprivate var stored: JSONValue {
    let directory: String? = if case .success(let path)? = currentDirectory { path } else { nil }
    let snapshot: String? =
      if case .idOrName(let name)? = engine.snapshot { name } else { nil }
    return .object([
      .init("path", .string(path)),
      .init("name", .string(name)),
      .init("directory", directory.map { .string($0) } ?? .null),
      .init("snapshot", snapshot.map { .string($0) } ?? .null),
      .init("cache-size", engine.cacheBytes.map { .integer(Int64($0)) } ?? .null),
      .init("copy-on-read", .bool(engine.copyOnRead)),
      .init("compress", .bool(engine.compressesWrites)),
      .init("direct", .bool(mode == .direct)),
      .init("granularity", .integer(Int64(granularity))),
      .init("locking", .bool(locks == .qemu)),
      .init("detect-zeroes", .string(detectZeroes.rawValue)),
      .init("backing-formats", .array(backingFormats.map { .string($0.rawValue) })),
      .init("backing-policy", .array(backingPolicy.rules.map(\.stored))),
      .init("data-file", dataFile.map { .string($0) } ?? .null),
      .init("passphrases", .integer(Int64(secrets.count))),
    ])
  }

  /// Everything but whether it is read-only, and what depends on the queues.
  fileprivate init?(stored json: JSONValue) {
    guard let path = json["path"]?.string, path.hasPrefix("/"), let name = json["name"]?.string,
      let copyOnRead = json["copy-on-read"]?.bool, let compress = json["compress"]?.bool,
      let direct = json["direct"]?.bool,
      let granularity = json["granularity"]?.integer, (512...4096).contains(granularity),
      let locking = json["locking"]?.bool,
      let detectZeroes = json["detect-zeroes"]?.string.flatMap(DetectZeroes.init),
      let formats = json["backing-formats"]?.array, let rules = json["backing-policy"]?.array
    else { return nil }
    self.init(path: path, name: name)
    engine.copyOnRead = copyOnRead
    engine.compressesWrites = compress
    engine.snapshot = json["snapshot"]?.string.map { .idOrName($0) }
    if let bytes = json["cache-size"]?.integer {
      guard bytes > 0 else { return nil }
      engine.cacheBytes = Int(bytes)
    }
    mode = direct ? .direct : .buffered
    self.granularity = Int(granularity)
    if !locking { locks = .ignored }
    self.detectZeroes = detectZeroes
    for format in formats {
      guard let format = format.string.flatMap(BackingFormat.init) else { return nil }
      backingFormats.append(format)
    }
    var policy: [BackingPolicy.Rule] = []
    for rule in rules {
      guard let rule = BackingPolicy.Rule(stored: rule) else { return nil }
      policy.append(rule)
    }
    backingPolicy = BackingPolicy(rules: policy)
    dataFile = json["data-file"]?.string
    currentDirectory = json["directory"]?.string.map { .success($0) }
  }
}

extension BackingPolicy.Rule {
  fileprivate var stored: JSONValue {
    switch self {
    case .any: .string("any")
    case .sameDirectory: .string("same-directory")
    // A real path, so it cannot be one of the words.
    case .below(let path): .string(path)
    case .ownersChoice(let users):
      .object([
        .init("trusted-owners", .array(users.sorted().map { .integer(Int64($0)) }))
      ])
    }
  }

  fileprivate init?(stored: JSONValue) {
    if let users = stored["trusted-owners"]?.array {
      let known = users.compactMap { $0.integer.flatMap(UInt32.init(exactly:)) }
      guard known.count == users.count else { return nil }
      self = .ownersChoice(Set(known))
      return
    }
    switch stored.string {
    case "any": self = .any
    case "same-directory": self = .sameDirectory
    case let path? where path.hasPrefix("/"): self = .below(path)
    default: return nil
    }
  }
}
