import JSON
import QCOW2Engine
import QCOW2Format
import QCOW2Tools

/// Option lists in QEMU's form: "name=value,name=value", a comma inside a value doubled.
extension DiskOpening {
  /// Takes over the options of a list.
  package mutating func apply(list: String) throws(OpeningError) {
    try apply(pairs: Self.pairs(list))
  }

  private mutating func apply(pairs: [NestedDrivers.Option]) throws(OpeningError) {
    for (name, value) in try NestedDrivers.flatten(pairs) { try apply(name, value) }
  }

  /// Takes over the members of a JSON object; those of an object inside are named "outer.inner".
  package mutating func apply(json: String) throws(OpeningError) {
    guard let value = JSONParser.parse(json), value.members != nil else {
      throw OpeningError("\"json:\" is not followed by a JSON object: \(json)")
    }
    var pairs: [NestedDrivers.Option] = []
    try Self.flatten(value, within: "", into: &pairs)
    try apply(pairs: pairs)
  }

  private static func flatten(
    _ value: JSONValue, within name: String, into pairs: inout [NestedDrivers.Option]
  ) throws(OpeningError) {
    switch value {
    case .object(let members):
      for member in members {
        let inner = name.isEmpty ? member.name : "\(name).\(member.name)"
        try flatten(member.value, within: inner, into: &pairs)
      }
    case .string(let text): pairs.append((name, text))
    case .bool(let isOn): pairs.append((name, isOn ? "on" : "off"))
    case .integer, .unsigned: pairs.append((name, value.line))
    case .null where name == "backing":
      throw OpeningError(
        "option \"backing\" is null: an image is opened with its backing file only")
    case .null, .fraction, .array:
      throw OpeningError("option \"\(name)\" is \(value.line), expected a word")
    }
  }

  /// Splits a list; a name without a value stands for "on".
  package static func pairs(_ list: String) -> [(name: String, value: String)] {
    var items: [String] = [""]
    var rest = list[...]
    while let character = rest.popFirst() {
      if character != "," {
        items[items.count - 1].append(character)
      } else if rest.first == "," {
        rest = rest.dropFirst()
        items[items.count - 1].append(",")
      } else {
        items.append("")
      }
    }
    return items.filter { !$0.isEmpty }.map { item in
      guard let sign = item.firstIndex(of: "=") else { return (item, "on") }
      return (String(item[..<sign]), String(item[item.index(after: sign)...]))
    }
  }

  private mutating func apply(_ name: String, _ value: String) throws(OpeningError) {
    switch name {
    case "driver", "format": try setDriver(name, value)
    case "file.filename", "file", "filename": try setPath(value)
    case "file.driver", "data-file.driver": try Self.requireFile(name, value)
    case "read-only": isReadOnly = try Self.flag(name, value)
    case "auto-read-only": _ = try Self.flag(name, value)
    case "force-share": sharesByForce = try Self.flag(name, value)
    case "copy-on-read": copiesOnRead = try Self.flag(name, value)
    case "discard": try setDiscard(value)
    case "cache.direct", "file.cache.direct": if try Self.flag(name, value) { cache = .none }
    case "cache.no-flush": if try Self.flag(name, value) { cache = .unsafe }
    case "data-file.filename": disk.dataFile = value
    case "detect-zeroes":
      guard let mode = DetectZeroes(rawValue: value) else {
        throw OpeningError(
          "option \"\(name)\" is \"\(value)\", expected \"off\", \"on\" or \"unmap\"")
      }
      detectZeroes = mode
    case "locking", "file.locking":
      if value == "auto" {
        ignoresLocks = false
      } else {
        ignoresLocks = try !Self.flag(name, value)
      }
    case "cache-size", "l2-cache-size": disk.engine.cacheBytes = try Self.size(name, value)
    case "pass-discard-request": if try !Self.flag(name, value) { discards = false }
    case "encrypt.format":
      guard let encryption = DiskImageOptions.Encryption(rawValue: value) else {
        throw OpeningError("option \"\(name)\" is \"\(value)\", expected \"luks\" or \"aes\"")
      }
      disk.encryption = encryption
    case "node-name", "file.node-name": break
    default: if try !isTuning(name, value) { try applyToLayer(name, value) }
    }
  }

  /// Takes an option that changes how QEMU does something that the engine does in its own way, at least
  /// as safely; its value must be one all the same.
  ///
  /// - Returns: Whether it is such an option.
  private func isTuning(_ name: String, _ value: String) throws(OpeningError) -> Bool {
    switch name {
    case "overlap-check", "overlap-check.template":
      guard ["none", "constant", "cached", "all", "on", "off"].contains(value) else {
        throw OpeningError(
          "option \"\(name)\" is \"\(value)\", expected none, constant, cached or all")
      }
    case _ where name.hasPrefix("overlap-check."), "lazy-refcounts", "pass-discard-snapshot",
      "pass-discard-other":
      _ = try Self.flag(name, value)
    case "l2-cache-entry-size", "refcount-cache-size", "cache-clean-interval":
      _ = try Self.size(name, value)
    case "file.aio":
      guard ["threads", "native", "io_uring"].contains(value) else {
        throw OpeningError(
          "option \"\(name)\" is \"\(value)\", expected threads, native or io_uring")
      }
    case "discard-no-unref":
      if try Self.flag(name, value) {
        throw OpeningError("option \"\(name)\" is on: a discard always gives the cluster back")
      }
    default: return false
    }
    return true
  }

  private static func size(_ name: String, _ value: String) throws(OpeningError) -> Int {
    guard let bytes = SizeText.parse(value), let size = Int(exactly: bytes) else {
      throw OpeningError("option \"\(name)\" is \"\(value)\", expected a size")
    }
    return size
  }

  /// "driver" of a file alone says nothing of the format: the file is the disk.
  private mutating func setDriver(_ name: String, _ value: String) throws(OpeningError) {
    if ["file", "host_device"].contains(value) { format = .raw } else { try setFormat(value) }
  }

  /// Options of a layer of the chain: "backing." in front once for each layer down.
  private mutating func applyToLayer(_ name: String, _ value: String) throws(OpeningError) {
    var depth = 0
    var rest = name[...]
    while rest.hasPrefix("backing."), depth < Chain.depthLimit {
      depth += 1
      rest = rest.dropFirst("backing.".count)
    }
    switch rest {
    case "encrypt.key-secret": setKeySecret(value, depth: depth)
    case "file.filename" where depth > 0:
      disk.backingPaths[depth - 1] = FileReference.commandLinePath(value)
    case "file.driver" where depth > 0: try Self.requireFile(name, value)
    case "node-name" where depth > 0, "file.node-name" where depth > 0: break
    case "driver" where depth > 0:
      guard let format = BackingFormat(rawValue: value) else {
        throw OpeningError("option \"\(name)\" is \"\(value)\", expected \"raw\" or \"qcow2\"")
      }
      guard disk.backingFormats.count == depth - 1 else {
        throw OpeningError("option \"\(name)\": give the drivers of the chain from the top down")
      }
      disk.backingFormats.append(format)
    default: throw OpeningError("option \"\(name)\" is not known")
    }
  }

  /// The driver of what has the bytes of a layer.
  private static func requireFile(_ name: String, _ value: String) throws(OpeningError) {
    guard ["file", "host_device"].contains(value) else {
      throw OpeningError("option \"\(name)\" is \"\(value)\", expected \"file\"")
    }
  }

  private static func flag(_ name: String, _ value: String) throws(OpeningError) -> Bool {
    switch value {
    case "on", "yes", "true": return true
    case "off", "no", "false": return false
    default: throw OpeningError("option \"\(name)\" is \"\(value)\", expected \"on\" or \"off\"")
    }
  }
}
