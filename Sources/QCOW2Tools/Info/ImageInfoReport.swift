package import JSON

/// The answer of `info`: an object with the keys of qemu-img in its order.
///
/// The text for people is made from the object, so that an answer that came from another process reads the same.
package struct ImageInfoReport: Equatable, Sendable {
  /// The object.
  package let json: JSONValue

  init(_ members: [JSONValue.Member]) { json = .object(members) }

  /// An answer that ``json`` was made from; nil for what is no object.
  package init?(json: JSONValue) {
    if json.members == nil { return nil }
    self.json = json
  }

  /// The answer for a raw image.
  ///
  /// - Parameters:
  ///   - path: What the answer calls it.
  ///   - length: Of the file, in bytes.
  ///   - stored: The storage that the host has given to the file.
  ///   - limits: What the host asks of transfers, if that is to be shown.
  package init(raw path: String, length: UInt64, stored: UInt64, _ limits: HostLimits?) {
    var members: [JSONValue.Member] = []
    if let limits {
      let alignment = limits.isProbed ? max(512, limits.requestAlignment) : 1
      members.append(limits.member(requestAlignment: alignment))
    }
    members.append(Self.file(path: path, length: length, stored: stored, limits))
    members += [
      .init("virtual-size", .number(Self.sectors(length))), .init("filename", .string(path)),
      .init("format", .string("raw")), .init("actual-size", .number(stored)),
      .init("dirty-flag", .bool(false)),
    ]
    self.init(members)
  }

  /// What is below an image: its file alone, since nothing that it refers to is opened.
  static func file(
    path: String, length: UInt64, stored: UInt64, _ limits: HostLimits?
  ) -> JSONValue.Member {
    var members: [JSONValue.Member] = []
    if let limits {
      members.append(limits.member(requestAlignment: limits.requestAlignment))
    }
    members += [
      .init("children", .array([])), .init("virtual-size", .number(sectors(length))),
      .init("filename", .string(path)), .init("format", .string("file")),
      .init("actual-size", .number(stored)),
      .init(
        "format-specific",
        .object([.init("type", .string("file")), .init("data", .object([]))])),
      .init("dirty-flag", .bool(false)),
    ]
    let child: [JSONValue.Member] = [
      .init("name", .string("file")), .init("info", .object(members)),
    ]
    return .init("children", .array([.object(child)]))
  }

  /// Whole sectors, as QEMU counts.
  private static func sectors(_ length: UInt64) -> UInt64 {
    length > UInt64(Int64.max) - 511 ? length : (length + 511) & ~511
  }

  /// The object as qemu-img prints it, with a line break.
  package var jsonText: String { json.qemuText + "\n" }

  /// The image's backing file: its path, as it is found from here, and its format if that is known.
  package var backing: (path: String, format: String?)? {
    guard let path = json["full-backing-filename"]?.string else { return nil }
    return (path, json["backing-filename-format"]?.string)
  }
}
