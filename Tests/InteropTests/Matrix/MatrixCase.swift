/// One way to make an image: a value for each dimension of the matrix.
struct MatrixCase: Hashable, Sendable, CustomStringConvertible {
  enum Contents: String, CaseIterable, Sendable { case plain, zlib, zstd }
  enum Backing: String, CaseIterable, Sendable { case none, raw, qcow2, chain }
  enum BackingLength: String, CaseIterable, Sendable { case shorter, equal, longer }
  enum Cipher: String, CaseIterable, Sendable { case plain, aes, luks }
  enum DataFile: String, CaseIterable, Sendable { case none, external, raw }
  enum Preallocation: String, CaseIterable, Sendable { case off, metadata, falloc, full }

  /// For each dimension the index of a value; see ``counts``.
  let choices: [Int]

  static let clusterBits = [9, 12, 14, 16, 21]
  /// nil stands for version 2.
  static let widths: [Int?] = [nil, 1, 2, 4, 8, 16, 32, 64]
  /// How many values each dimension has.
  static let counts = [
    clusterBits.count, widths.count, Contents.allCases.count, Backing.allCases.count,
    BackingLength.allCases.count, ciphers.count, DataFile.allCases.count,
    Preallocation.allCases.count, 2, 2, 2,
  ]
  static let cipherDimension = 5
  static let ciphers = Cipher.allCases

  var clusterBits: Int { Self.clusterBits[choices[0]] }
  var width: Int? { Self.widths[choices[1]] }
  var contents: Contents { Contents.allCases[choices[2]] }
  var backing: Backing { Backing.allCases[choices[3]] }
  var backingLength: BackingLength { BackingLength.allCases[choices[4]] }
  var cipher: Cipher { Self.ciphers[choices[Self.cipherDimension]] }
  var dataFile: DataFile { DataFile.allCases[choices[6]] }
  var preallocation: Preallocation { Preallocation.allCases[choices[7]] }
  var isExtended: Bool { choices[8] == 1 }
  var hasLazyRefcounts: Bool { choices[9] == 1 }
  var hasSnapshot: Bool { choices[10] == 1 }

  var clusterSize: UInt64 { 1 << UInt64(clusterBits) }
  var subclusterSize: UInt64 { isExtended ? clusterSize / 32 : clusterSize }

  /// Whether qemu-img 7.2 makes such an image, and every value has a meaning in it.
  var isValid: Bool {
    let isVersion2 = width == nil
    if isVersion2
      && (hasLazyRefcounts || isExtended || dataFile != .none || contents == .zstd)
    {
      return false
    }
    if isExtended && clusterBits < 14 { return false }
    if backing == .none ? backingLength != .equal : dataFile == .raw { return false }
    // With both, the new image would hide its backing file.
    if backing != .none && preallocation != .off && !isExtended { return false }
    // Compressed clusters go into the image file, and only where nothing is allocated.
    if contents != .plain && (dataFile != .none || preallocation != .off) { return false }
    // Nor can a snapshot be counted where a refcount is at its most, as compressed clusters that
    // share a host cluster soon make it.
    return !hasSnapshot
      || dataFile == .none && (width ?? 16) >= (contents == .plain ? 2 : 8)
  }

  var description: String {
    var words = [
      "cluster_bits=\(clusterBits)", width.map { "v3 refcount_bits=\($0)" } ?? "v2",
      "contents=\(contents)",
      backing == .none ? "backing=none" : "backing=\(backing),\(backingLength)",
      "cipher=\(cipher)", "data_file=\(dataFile)", "preallocation=\(preallocation)",
    ]
    if isExtended { words.append("extended_l2") }
    if hasLazyRefcounts { words.append("lazy_refcounts") }
    if hasSnapshot { words.append("snapshot") }
    return words.joined(separator: " ")
  }

  /// What `qemu-img create -o` is told, except for names of files.
  var options: String {
    var options = "cluster_size=\(clusterSize),preallocation=\(preallocation)"
    options += width.map { ",compat=1.1,refcount_bits=\($0)" } ?? ",compat=0.10"
    if contents == .zstd { options += ",compression_type=zstd" }
    if isExtended { options += ",extended_l2=on" }
    if hasLazyRefcounts { options += ",lazy_refcounts=on" }
    if dataFile == .raw { options += ",data_file_raw=on" }
    return options
  }
}
