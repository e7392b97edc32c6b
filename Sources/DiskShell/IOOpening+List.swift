import DiskImages
import QCOW2Format

/// Option lists in QEMU's form: "name=value,name=value", a comma inside a value doubled.
extension IOOpening {
  /// Takes over the options of a list.
  package mutating func apply(list: String) throws(IOFailure) {
    for (name, value) in Self.pairs(list) { try apply(name, value) }
  }

  /// Takes the path that was given apart from the list.
  package mutating func setPath(_ path: String) throws(IOFailure) {
    guard self.path == nil else {
      throw .openOption("\(path): the file is named by \"file.filename\", too")
    }
    self.path = FileReference.commandLinePath(path)
  }

  /// Splits a list; a name without a value stands for "on".
  static func pairs(_ list: String) -> [(name: String, value: String)] {
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

  private mutating func apply(_ name: String, _ value: String) throws(IOFailure) {
    switch name {
    case "driver", "format": try setFormat(value)
    case "file.filename", "file": try setPath(value)
    case "file.driver", "data-file.driver", "backing.file.driver":
      guard ["file", "host_device"].contains(value) else {
        throw .openOption("option \"\(name)\" is \"\(value)\", expected \"file\"")
      }
    case "read-only": isReadOnly = try Self.flag(name, value)
    case "force-share": sharesByForce = try Self.flag(name, value)
    case "copy-on-read": copiesOnRead = try Self.flag(name, value)
    case "discard": try setDiscard(value)
    case "cache.direct": if try Self.flag(name, value) { cache = .none }
    case "cache.no-flush": if try Self.flag(name, value) { cache = .unsafe }
    case "backing.driver":
      guard let format = BackingFormat(rawValue: value) else {
        throw .openOption("option \"\(name)\" is \"\(value)\", expected \"raw\" or \"qcow2\"")
      }
      disk.backingFormats = [format]
    case "data-file.filename": disk.dataFile = value
    case "encrypt.key-secret": keySecret = value
    case "encrypt.format":
      guard let encryption = DiskImageOptions.Encryption(rawValue: value) else {
        throw .openOption("option \"\(name)\" is \"\(value)\", expected \"luks\" or \"aes\"")
      }
      disk.encryption = encryption
    case "node-name", "file.node-name": break
    default: throw .openOption("option \"\(name)\" is not known")
    }
  }

  private static func flag(_ name: String, _ value: String) throws(IOFailure) -> Bool {
    switch value {
    case "on", "yes", "true": return true
    case "off", "no", "false": return false
    default: throw .openOption("option \"\(name)\" is \"\(value)\", expected \"on\" or \"off\"")
    }
  }
}
