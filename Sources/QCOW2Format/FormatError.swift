public import BlockCore

/// Why bytes are not a qcow2 structure that can be used: which field, what was found, what is
/// allowed.
public enum FormatError: Error, Equatable, Sendable {
  /// The magic number is not `QFI\xfb`.
  case notQCOW2(magic: UInt32)
  /// The version is neither 2 nor 3.
  case unsupportedVersion(UInt32)
  /// The file ends before the structure does.
  case truncated(structure: FieldName, needed: UInt64, available: UInt64)
  /// A field outside of what the specification, or a stated limit, allows.
  case badField(name: FieldName, found: UInt64, allowed: String)
  /// Incompatible feature bits that this program does not know, as a mask.
  case unknownIncompatibleFeatures(UInt64)
  /// A table or entry at a wrong place: the offset, what it should have been.
  case badOffset(name: FieldName, offset: HostOffset, problem: OffsetProblem)
  /// An entry in a table, at `index`, with reserved bits or an impossible value.
  case badEntry(name: FieldName, index: UInt64, value: UInt64, problem: OffsetProblem)
}

/// What is wrong with an offset.
public enum OffsetProblem: String, Equatable, Sendable {
  case unaligned = "not aligned to a cluster"
  case zero = "zero, expected a place in the file"
  case beyondLimit = "beyond the format's limit"
  case beyondEnd = "beyond the end of the file"
  case missing = "the file ends before it"
  case overlapsMetadata = "inside other metadata"
  case reservedBits = "reserved bits are set"
  case compressedWithDataFile = "compressed, which an image with an external data file cannot have"
  case notAtGuestOffset = "not the guest's offset, where the data lies in an external data file"
  case allocatedAndZero = "a subcluster is both allocated and zero"
}

/// A fixed text that is `Equatable`: the name of a field or structure in the specification's words.
public struct FieldName: Equatable, Sendable, ExpressibleByStringLiteral,
  CustomStringConvertible
{
  public let text: String
  public init(stringLiteral value: String) { text = value }
  public var description: String { text }
}

extension FormatError {
  /// What failed and why, in the form of an error line after the object's name.
  public var message: String {
    switch self {
    case .notQCOW2(let magic):
      "not a qcow2 image: magic is \(hex(UInt64(magic))), expected 0x514649fb"
    case .unsupportedVersion(let version):
      "unsupported qcow2 version \(version), expected 2 or 3"
    case .truncated(let structure, let needed, let available):
      "\(structure) is truncated: needs \(needed) bytes, the file has \(available)"
    case .badField(let name, let found, let allowed):
      "\(name) is \(found), expected \(allowed)"
    case .unknownIncompatibleFeatures(let mask):
      "unsupported incompatible features: " + bitNames(mask)
    case .badOffset(let name, let offset, let problem):
      "\(name) at host offset \(hex(offset.bytes)): \(problem.rawValue)"
    case .badEntry(let name, let index, let value, let problem):
      "\(name) \(index) is \(hex(value)): \(problem.rawValue)"
    }
  }
}

extension FormatError {
  /// Why a table that must be there cannot be where it is said to be; nil if it can.
  static func place(
    of name: FieldName, _ offset: HostOffset, _ geometry: ClusterGeometry
  ) -> FormatError? {
    let problem: OffsetProblem? =
      offset.bytes == 0
      ? .zero
      : offset.bytes & geometry.clusterMask != 0
        ? .unaligned : offset.bytes >= FormatLimit.hostOffset ? .beyondLimit : nil
    return problem.map { .badOffset(name: name, offset: offset, problem: $0) }
  }
}

/// Hexadecimal with its prefix, for offsets and masks in messages.
public func hex(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }

private func bitNames(_ mask: UInt64) -> String {
  (0..<64).filter { mask >> UInt64($0) & 1 == 1 }.map { "bit \($0)" }.joined(separator: ", ")
}
