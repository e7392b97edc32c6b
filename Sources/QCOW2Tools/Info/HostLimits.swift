package import JSON

/// What the host asks of transfers of a file, as `info --limits` shows it.
package struct HostLimits: Equatable, Sendable {
  /// The pieces of memory that one transfer may have: IOV_MAX.
  private static let mostPieces: UInt64 = 1024

  /// In bytes; 1 through the page cache.
  package var requestAlignment: UInt64
  /// In bytes; 1 through the page cache.
  package var memoryAlignment: UInt64
  /// Nobody said that a raw image is raw: QEMU keeps to sectors then.
  package var isProbed: Bool

  /// Limits; those of the page cache by default.
  package init(
    requestAlignment: UInt64 = 1, memoryAlignment: UInt64 = 1, isProbed: Bool = false
  ) {
    self.requestAlignment = requestAlignment
    self.memoryAlignment = memoryAlignment
    self.isProbed = isProbed
  }

  /// The limits of an image in the file, with qemu-img's keys.
  ///
  /// - Parameters:
  ///   - requestAlignment: What the format asks for, in bytes.
  ///   - zeroAlignment: Of a format whose zeros have a unit.
  ///   - discardAlignment: The same for discards.
  /// - Returns: The member of the answer.
  func member(
    requestAlignment: UInt64, zeroAlignment: UInt64? = nil, discardAlignment: UInt64? = nil
  ) -> JSONValue.Member {
    var members: [JSONValue.Member] = []
    if let zeroAlignment {
      members.append(.init("write-zeroes-alignment", .number(zeroAlignment)))
    }
    members.append(.init("request-alignment", .number(requestAlignment)))
    members.append(.init("min-mem-alignment", .number(memoryAlignment)))
    if let discardAlignment {
      members.append(.init("discard-alignment", .number(discardAlignment)))
    }
    members.append(.init("opt-mem-alignment", .number(max(memoryAlignment, 4096))))
    members.append(.init("max-iov", .number(Self.mostPieces)))
    return .init("limits", .object(members))
  }
}

extension HostLimits {
  /// The form of requests: an object.
  package var json: JSONValue {
    .object([
      .init("request-alignment", .number(requestAlignment)),
      .init("memory-alignment", .number(memoryAlignment)), .init("probed", .bool(isProbed)),
    ])
  }

  /// Reads ``json``; nil if it is not such an object.
  package init?(json: JSONValue) {
    guard let request = json["request-alignment"]?.unsigned,
      let memory = json["memory-alignment"]?.unsigned, let isProbed = json["probed"]?.bool
    else { return nil }
    self.init(requestAlignment: request, memoryAlignment: memory, isProbed: isProbed)
  }
}
