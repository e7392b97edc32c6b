/// What storage `create` gives the image at once.
package enum Preallocation: String, CaseIterable, Sendable {
  /// Nothing is mapped.
  case off
  /// Every guest cluster is mapped; its data is a hole in the file.
  case metadata
  /// As metadata, and the host has reserved the storage.
  case falloc
  /// As metadata, and zeros are written.
  case full
}

/// What to create.
package struct CreateOptions: Equatable, Sendable {
  /// The virtual size in bytes as asked for; see ``virtualSize``.
  package var size: UInt64
  /// log2 of the cluster size: 9 to 21.
  package var clusterBits: Int = 16
  /// 2 or 3.
  package var version: UInt32 = 3
  /// log2 of the refcount width: 0 to 6.
  package var refcountOrder: Int = 4
  package var lazyRefcounts: Bool = false
  package var preallocation: Preallocation = .off
  /// L2 entries with subclusters; clusters of 16 KiB or more.
  package var extendedL2: Bool = false
  /// Compressed clusters are zstd's, not zlib's.
  package var usesZstd: Bool = false
  /// The name as it is to stand in the image: relative to the image's directory, or absolute.
  package var backingFile: String?
  package var backingFormat: String?
  /// The external data file, as it is to stand in the image; made relative to the current
  /// directory.
  package var dataFile: String?
  /// The data file is to be a raw image at all times.
  package var hasRawDataFile: Bool = false
  /// `data_file_raw` was written, for the line that repeats the options.
  package var repeatsRawDataFile: Bool = false
  /// How the data is encrypted; nil if it is not.
  package var encryption: CreateEncryption?
  /// `compat` as it was written, for the line that repeats the options.
  package var compatText: String?
  /// `preallocation` was written, for the same line.
  package var repeatsPreallocation: Bool = false
  /// What the host's file system is to know of the file.
  package var hints = HostFileHints()

  package init(size: UInt64) { self.size = size }

  /// The size in whole 512-byte sectors.
  package var virtualSize: UInt64 { (size + 511) & ~511 }
  package var clusterSize: UInt64 { 1 << UInt64(clusterBits) }

  /// The line that qemu-img prints before it creates an image.
  package func formattingLine(path: String) -> String {
    var words = ["fmt=qcow2"] + (encryption?.words ?? [])
    words.append("cluster_size=\(clusterSize)")
    words.append("extended_l2=\(extendedL2 ? "on" : "off")")
    if repeatsPreallocation { words.append("preallocation=\(preallocation.rawValue)") }
    words += ["compression_type=\(usesZstd ? "zstd" : "zlib")", "size=\(size)"]
    if let compatText { words.append("compat=\(compatText)") }
    if let backingFile { words.append("backing_file=\(backingFile)") }
    if let backingFormat { words.append("backing_fmt=\(backingFormat)") }
    if let dataFile { words.append("data_file=\(dataFile)") }
    if repeatsRawDataFile { words.append("data_file_raw=\(hasRawDataFile ? "on" : "off")") }
    words.append("lazy_refcounts=\(lazyRefcounts ? "on" : "off")")
    words.append("refcount_bits=\(1 << refcountOrder)")
    words += hints.words
    return "Formatting '\(path)', " + words.joined(separator: " ")
  }
}

extension CreateOptions {
  /// The preallocation that is carried out: a raw data file needs everything mapped.
  var mapping: Preallocation {
    hasRawDataFile && preallocation == .off ? .metadata : preallocation
  }

  /// Reads the options of the command line.
  ///
  /// - Parameters:
  ///   - lists: Each a comma list of `name=value`; a comma in a value is written twice, and a later
  ///     option replaces an earlier one of the same name.
  ///   - size: The argument after the file name.
  ///   - backingFile: Of `-b`; replaces the one of `-o`.
  ///   - backingFormat: Of `-F`; replaces the one of `-o`.
  ///   - backingSize: Reads the size of the backing file, name and format given; called if there is
  ///     one, also with a size: it must be possible to open.
  /// - Throws: ``OptionError`` at the first option that cannot be used, or what `backingSize`
  ///   throws.
  package init(
    lists: [String], size: String?, backingFile: String? = nil, backingFormat: String? = nil,
    backingSize: ((String, String) throws(ToolError) -> UInt64)? = nil
  ) throws(ToolError) {
    self.init(size: 0)
    let hasSize: Bool
    do throws(OptionError) {
      let text = try read(lists, size)
      self.backingFile = backingFile ?? self.backingFile
      self.backingFormat = backingFormat ?? self.backingFormat
      try checkConflicts()
      try HeaderBytes.check(self)
      hasSize = text != nil
      if let text { self.size = try Self.parseSize(text) }
    } catch {
      throw .option(error)
    }
    guard let name = self.backingFile, let format = self.backingFormat, let backingSize else {
      if hasSize { return }
      throw .option(.sizeMissing)
    }
    let found = try backingSize(name, format)
    if !hasSize { self.size = found }
  }

  /// Reads the options of an image that is only measured: its size does not count, nor whether there is a
  /// backing file.
  ///
  /// - Throws: ``OptionError`` at the first option that cannot be used.
  package init(measuring lists: [String]) throws(OptionError) {
    self.init(size: 0)
    _ = try read(lists, nil)
    if backingFile != nil { backingFormat = backingFormat ?? "raw" }
    try checkConflicts()
  }

  /// Reads the lists; returns the text of the size, if there is one.
  private mutating func read(
    _ lists: [String], _ size: String?
  ) throws(OptionError) -> String? {
    var sizeText: String?
    var encryptWords = EncryptWords()
    for list in lists {
      for (name, value) in try Self.split(list) {
        if name == "size" {
          sizeText = value
        } else if !(try encryptWords.take(name, value)) {
          try set(name, value)
        }
      }
    }
    encryption = try CreateEncryption(encryptWords)
    guard sizeText == nil || size == nil else { throw .sizeGivenTwice }
    return sizeText ?? size
  }

  static func parseSize(_ text: String) throws(OptionError) -> UInt64 {
    guard let bytes = SizeText.parse(text), bytes <= UInt64(Int64.max) &- 511 else {
      var allowed = "0 to \(Int64.max - 511) bytes, or a number with k, M, G, T, P or E"
      if let short = SizeText.withoutUnit(text) { allowed += ": write \(short)" }
      throw .badValue(name: "size", found: text, allowed: allowed)
    }
    return bytes
  }

  /// Splits at single commas and at the first `=`; an option without a value is switched on.
  ///
  /// - Throws: ``OptionError/badList(_:)`` for a list that qemu-img does not take either.
  static func split(
    _ list: String
  ) throws(OptionError) -> [(name: String, value: String)] {
    let joined = list.split(separator: ",,", omittingEmptySubsequences: false)
      .joined(separator: "\u{0}")  // no argument of a process contains it
    let options = joined.split(separator: ",", omittingEmptySubsequences: false)
    if options.contains(where: \.isEmpty) { throw .badList(list) }
    return options.map { option in
      let text = String(option.map { $0 == "\u{0}" ? "," : $0 })
      guard let equals = text.firstIndex(of: "=") else { return (text, "on") }
      return (String(text[..<equals]), String(text[text.index(after: equals)...]))
    }
  }

  private mutating func set(_ name: String, _ value: String) throws(OptionError) {
    switch name {
    case "cluster_size": clusterBits = try Self.clusterBits(value)
    case "compat": try setCompat(value)
    case "refcount_bits": refcountOrder = try Self.refcountOrder(value)
    case "lazy_refcounts": lazyRefcounts = try Self.flag(name, value)
    case "preallocation":
      guard let mode = Preallocation(rawValue: value) else {
        throw .badValue(name: name, found: value, allowed: "off, metadata, falloc or full")
      }
      preallocation = mode
      repeatsPreallocation = true
    case "compression_type":
      guard value == "zlib" || value == "zstd" else {
        throw .badValue(name: name, found: value, allowed: "zlib or zstd")
      }
      usesZstd = value == "zstd"
    case "extended_l2": extendedL2 = try Self.flag(name, value)
    case "backing_file": backingFile = value
    case "backing_fmt": backingFormat = value
    case "data_file": dataFile = value
    case "data_file_raw":
      hasRawDataFile = try Self.flag(name, value)
      repeatsRawDataFile = true
    default:
      if try hints.take(name, value) { return }
      throw Self.isKnownToQEMU(name) ? .notSupportedYet(name) : .unknown(name)
    }
  }

  private mutating func setCompat(_ value: String) throws(OptionError) {
    version = try Self.version(value)
    compatText = value
  }

  static func version(_ value: String) throws(OptionError) -> UInt32 {
    switch value {
    case "0.10", "v2": return 2
    case "1.1", "v3": return 3
    default: throw .badValue(name: "compat", found: value, allowed: "0.10, v2, 1.1 or v3")
    }
  }

  private static func clusterBits(_ value: String) throws(OptionError) -> Int {
    guard let size = SizeText.parse(value), size.nonzeroBitCount == 1,
      (9...21).contains(size.trailingZeroBitCount)
    else {
      throw .badValue(
        name: "cluster_size", found: value, allowed: "a power of two from 512 to 2M")
    }
    return size.trailingZeroBitCount
  }

  static func refcountOrder(_ value: String) throws(OptionError) -> Int {
    let bits = value.hasPrefix("0x") ? UInt64(value.dropFirst(2), radix: 16) : UInt64(value)
    guard let bits, bits.nonzeroBitCount == 1, bits <= 64 else {
      throw .badValue(name: "refcount_bits", found: value, allowed: "1, 2, 4, 8, 16, 32 or 64")
    }
    return bits.trailingZeroBitCount
  }

  static func flag(_ name: String, _ value: String) throws(OptionError) -> Bool {
    switch value {
    case "on", "yes", "true", "y": return true
    case "off", "no", "false", "n": return false
    default: throw .badValue(name: name, found: value, allowed: "on or off")
    }
  }

  private static func isKnownToQEMU(_ name: String) -> Bool {
    ["keep_data_file"].contains(name)
  }
}
