/// Bits of `incompatible_features`. Source: qcow2 specification, "Header".
package struct IncompatibleFeatures: OptionSet, Sendable {
  package let rawValue: UInt64
  package init(rawValue: UInt64) { self.rawValue = rawValue }
  package static let dirty = Self(rawValue: 1 << 0)
  package static let corrupt = Self(rawValue: 1 << 1)
  package static let externalDataFile = Self(rawValue: 1 << 2)
  package static let compressionType = Self(rawValue: 1 << 3)
  package static let extendedL2 = Self(rawValue: 1 << 4)
  /// All that the specification defines.
  package static let known: Self = [
    .dirty, .corrupt, .externalDataFile, .compressionType, .extendedL2,
  ]
}

/// Bits of `compatible_features`.
package struct CompatibleFeatures: OptionSet, Sendable {
  package let rawValue: UInt64
  package init(rawValue: UInt64) { self.rawValue = rawValue }
  package static let lazyRefcounts = Self(rawValue: 1 << 0)
}

/// Bits of `autoclear_features`.
package struct AutoclearFeatures: OptionSet, Sendable {
  package let rawValue: UInt64
  package init(rawValue: UInt64) { self.rawValue = rawValue }
  package static let bitmaps = Self(rawValue: 1 << 0)
  package static let rawExternalData = Self(rawValue: 1 << 1)
}
