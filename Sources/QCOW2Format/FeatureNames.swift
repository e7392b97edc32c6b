/// The feature name table: what the bits of the three feature fields are called.
///
/// Source: qcow2 specification, "Feature name table".
public struct FeatureNames: Equatable, Sendable {
  /// Which of the three fields a bit belongs to, with its number in the table.
  public enum Field: UInt8, Sendable {
    case incompatible = 0
    case compatible = 1
    case autoclear = 2
  }

  /// One entry of the table.
  public struct Entry: Equatable, Sendable {
    public var field: Field
    /// 0 to 63.
    public var bit: UInt8
    /// At most 46 bytes of UTF-8.
    public var name: String

    public init(_ field: Field, _ bit: UInt8, _ name: String) {
      self.field = field
      self.bit = bit
      self.name = name
    }
  }

  /// The bytes of one entry.
  public static let entryLength = 48
  private static let nameLength = 46

  public var entries: [Entry]

  public init(entries: [Entry]) { self.entries = entries }

  /// All bits that the specification defines, named as QEMU names them.
  public static let standard = FeatureNames(entries: [
    Entry(.incompatible, 0, "dirty bit"),
    Entry(.incompatible, 1, "corrupt bit"),
    Entry(.incompatible, 2, "external data file"),
    Entry(.incompatible, 3, "compression type"),
    Entry(.incompatible, 4, "extended L2 entries"),
    Entry(.compatible, 0, "lazy refcounts"),
    Entry(.autoclear, 0, "bitmaps"),
    Entry(.autoclear, 1, "raw external data"),
  ])

  /// Reads a table; entries for fields that do not exist and a partial last entry are left out.
  public init(parsing bytes: [UInt8]) {
    entries = []
    for start in stride(from: 0, to: bytes.count, by: Self.entryLength) {
      guard start + Self.entryLength <= bytes.count else { break }
      guard let field = Field(rawValue: bytes[start]), bytes[start + 1] < 64 else { continue }
      let name = bytes[(start + 2)..<(start + Self.entryLength)].prefix { $0 != 0 }
      entries.append(Entry(field, bytes[start + 1], String(decoding: name, as: UTF8.self)))
    }
  }

  /// The table as it is stored in the header extension.
  public var encoded: [UInt8] {
    entries.flatMap { entry in
      let name = entry.name.utf8.prefix(Self.nameLength)
      return [entry.field.rawValue, entry.bit] + name
        + [UInt8](repeating: 0, count: Self.nameLength - name.count)
    }
  }

  /// The name of a bit; nil if the table has none.
  public func name(of bit: UInt8, in field: Field) -> String? {
    entries.first { $0.field == field && $0.bit == bit }?.name
  }
}
