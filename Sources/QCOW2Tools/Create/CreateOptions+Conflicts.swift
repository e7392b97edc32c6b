/// Options that exclude each other, in qemu-img's words where it has any.
package enum OptionConflict: String, Equatable, Sendable {
  case backingFormatMissing = "Backing file specified without backing format"
  case backingFormatAlone = "Backing format cannot be used without backing file"
  case backingNameEmpty = "Expected backing file name, got empty string"
  case backingIsImage =
    "Error: Trying to create an image with the same filename as the backing file"
  case backingWithRawData = "Backing file and data-file-raw cannot be used at the same time"
  case backingWithPreallocation =
    "Backing file and preallocation can only be used at the same time if extended_l2 is on"
  case dataFileIsImage = "The data file and the image cannot be the same file"
  case dataFileIsBacking = "The data file and the backing file cannot be the same file"
  case rawDataWithoutFile = "data-file-raw requires data-file"
  case dataFileVersion =
    "External data files are only supported with compatibility level 1.1 and above (use version=v3 or greater)"
  case extendedVersion =
    "Extended L2 entries are only supported with compatibility level 1.1 and above (use version=v3 or greater)"
  case extendedClusterSize =
    "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes"
  case encryptionTwice =
    "Options encryption and encrypt.format are mutually exclusive"
  /// Ciphertext is nothing that others could read as a raw image.
  case encryptionWithRawData = "Encryption and data_file_raw cannot be used at the same time"
  /// Zeros as they are decrypt to noise, and version 2 cannot say that a cluster reads as zeros.
  case encryptionWithPreallocation =
    "Encryption and preallocation can only be used at the same time with compat=1.1"
  case compressionVersion =
    "Non-zlib compression type is only supported with compatibility level 1.1 and above (use version=v3 or greater)"
}

extension CreateOptions {
  /// Throws if options exclude each other.
  func checkConflicts() throws(OptionError) {
    if let conflict = versionConflict ?? fileConflict { throw .conflict(conflict) }
    guard version == 2 else { return }
    if lazyRefcounts { throw .needsVersion3("lazy_refcounts=on") }
    if refcountOrder != 4 { throw .needsVersion3("refcount_bits=\(1 << refcountOrder)") }
  }

  private var versionConflict: OptionConflict? {
    if version == 2 && usesZstd { return .compressionVersion }
    if version == 2 && dataFile != nil { return .dataFileVersion }
    if version == 2 && encryption != nil && preallocation != .off {
      return .encryptionWithPreallocation
    }
    guard extendedL2 else { return nil }
    if version == 2 { return .extendedVersion }
    return clusterBits < 14 ? .extendedClusterSize : nil
  }

  private var fileConflict: OptionConflict? {
    if backingFile == "" { return .backingNameEmpty }
    if backingFile != nil && backingFormat == nil { return .backingFormatMissing }
    if backingFile == nil && backingFormat != nil { return .backingFormatAlone }
    if hasRawDataFile && dataFile == nil { return .rawDataWithoutFile }
    if encryption != nil && hasRawDataFile { return .encryptionWithRawData }
    guard backingFile != nil else { return nil }
    if hasRawDataFile { return .backingWithRawData }
    return preallocation != .off && !extendedL2 ? .backingWithPreallocation : nil
  }
}
