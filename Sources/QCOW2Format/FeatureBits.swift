/// Bits of `incompatible_features`.
///
/// Source: qcow2 specification, "Header".
public struct IncompatibleFeatures: OptionSet, Sendable {
  public let rawValue: UInt64
  public init(rawValue: UInt64) { self.rawValue = rawValue }
  public static let dirty = Self(rawValue: 1 << 0)
  public static let corrupt = Self(rawValue: 1 << 1)
  public static let externalDataFile = Self(rawValue: 1 << 2)
  public static let compressionType = Self(rawValue: 1 << 3)
  public static let extendedL2 = Self(rawValue: 1 << 4)
  /// All that the specification defines.
  public static let known: Self = [
    .dirty, .corrupt, .externalDataFile, .compressionType, .extendedL2,
  ]
}

/// Bits of `compatible_features`.
public struct CompatibleFeatures: OptionSet, Sendable {
  public let rawValue: UInt64
  public init(rawValue: UInt64) { self.rawValue = rawValue }
  public static let lazyRefcounts = Self(rawValue: 1 << 0)
}

/// Bits of `autoclear_features`.
public struct AutoclearFeatures: OptionSet, Sendable {
  public let rawValue: UInt64
  public init(rawValue: UInt64) { self.rawValue = rawValue }
  public static let bitmaps = Self(rawValue: 1 << 0)
  public static let rawExternalData = Self(rawValue: 1 << 1)
}

extension Header {
  /// The autoclear bits that may stay when somebody is about to write: the one rule for all writers.
  ///
  /// An unknown bit promises something that a writer may break. So it is cleared, durably, before
  /// the first write to the image [FMT-4].
  ///
  /// With `keepsBitmaps` the writer keeps the persistent bitmaps true.
  public func autoclearToKeep(keepsBitmaps: Bool) -> AutoclearFeatures {
    var kept: AutoclearFeatures = keepsBitmaps ? .bitmaps : []
    if incompatible.contains(.externalDataFile) { kept.insert(.rawExternalData) }
    return autoclear.intersection(kept)
  }
}
