import TestTools

/// How a sample image is made: a value for each dimension of the format.
struct SampleShape: CustomStringConvertible, Sendable {
  enum Backing: String, CaseIterable, Sendable { case none, raw, qcow2, chain }
  enum Cipher: String, CaseIterable, Sendable { case plain, luks, aes }
  enum DataFile: String, CaseIterable, Sendable { case none, external, raw }
  enum Preallocation: String, CaseIterable, Sendable { case off, metadata, falloc, full }

  var clusterBits = 16
  var isVersion2 = false
  var refcountBits = 16
  var isExtended = false
  var isLazy = false
  /// Some clusters are compressed; with zstd, else with zlib.
  var isCompressed = false
  var usesZstd = false
  var backing = Backing.none
  /// In percent of the image's own size.
  var backingLength = 100
  /// How many snapshots it has, and whether the last one has VM state.
  var snapshots = 0
  var hasVMState = false
  var hasBitmaps = false
  var cipher = Cipher.plain
  var dataFile = DataFile.none
  var preallocation = Preallocation.off
  /// In bytes.
  var size: UInt64 = 4 << 20

  /// The same image with other values.
  static func with(_ change: (inout SampleShape) -> Void) -> SampleShape {
    var shape = SampleShape()
    change(&shape)
    return shape
  }

  /// Whether qemu-img makes such an image, and every value has a meaning in it.
  var isValid: Bool {
    if isVersion2
      && (isLazy || isExtended || usesZstd || refcountBits != 16 || dataFile != .none || hasBitmaps)
    {
      return false
    }
    if isExtended && clusterBits < 14 || usesZstd && !isCompressed { return false }
    if isCompressed && (dataFile != .none || preallocation != .off || cipher != .plain) {
      return false
    }
    if backing != .none && (preallocation != .off && !isExtended || dataFile == .raw) {
      return false
    }
    // A snapshot is counted in each refcount, compressed clusters share host clusters.
    let counts = snapshots + (isCompressed ? 8 : 0)
    if counts > 0 && refcountBits < 4 || counts > 4 && refcountBits < 8 { return false }
    if hasVMState && snapshots == 0 || snapshots > 0 && dataFile != .none { return false }
    if preallocation != .off && size > 16 << 20 || dataFile == .raw && cipher != .plain {
      return false
    }
    // QEMU's L1 tables have 32 MiB at most.
    let entries = (UInt64(1) << UInt64(clusterBits)) / (isExtended ? 16 : 8)
    return size <= (4 << 20) * entries << UInt64(clusterBits)
  }

  /// The options of `create -o`, but for the backing file.
  var createOptions: [String] {
    var options = ["cluster_size=\(1 << clusterBits)"]
    if isVersion2 { options.append("compat=0.10") }
    if refcountBits != 16 { options.append("refcount_bits=\(refcountBits)") }
    if isExtended { options.append("extended_l2=on") }
    if isLazy { options.append("lazy_refcounts=on") }
    if usesZstd { options.append("compression_type=zstd") }
    if preallocation != .off { options.append("preallocation=\(preallocation)") }
    if dataFile != .none { options.append("data_file=image.data") }
    if dataFile == .raw { options.append("data_file_raw=on") }
    switch cipher {
    case .plain: break
    case .luks:
      options += ["encrypt.format=luks", "encrypt.key-secret=sec0", "encrypt.iter-time=10"]
    case .aes: options += ["encrypt.format=aes", "encrypt.key-secret=sec0"]
    }
    return options
  }

  var description: String {
    var words = createOptions.filter { !$0.hasPrefix("encrypt.") }
    if cipher != .plain { words.append("\(cipher)") }
    if isCompressed { words.append("compressed") }
    if backing != .none { words.append("backing=\(backing) \(backingLength) %") }
    if snapshots > 0 { words.append("snapshots=\(snapshots)") }
    if hasVMState { words.append("VM state") }
    if hasBitmaps { words.append("bitmaps") }
    return words.joined(separator: " ") + " size=\(size)"
  }
}

extension SampleShape {
  /// Each value of each dimension at least once, otherwise as plain as it can be.
  static let corners: [SampleShape] =
    [SampleShape()]
    + [9, 12, 14, 18, 21].map { bits in with { $0.clusterBits = bits } }
    + [1, 2, 4, 8, 32, 64].map { bits in with { $0.refcountBits = bits } }
    + [Backing.raw, .qcow2, .chain].map { kind in
      with {
        $0.backing = kind
        $0.backingLength = kind == .raw ? 60 : kind == .qcow2 ? 140 : 100
      }
    }
    + [
      with { $0.isVersion2 = true }, with { $0.isExtended = true }, with { $0.isLazy = true },
      with { $0.isCompressed = true },
      with {
        $0.isCompressed = true
        $0.usesZstd = true
      },
      with { $0.snapshots = 2 },
      with {
        $0.snapshots = 1
        $0.hasVMState = true
      },
      with { $0.hasBitmaps = true }, with { $0.cipher = .luks }, with { $0.cipher = .aes },
      with { $0.dataFile = .external }, with { $0.dataFile = .raw },
      with { $0.preallocation = .metadata }, with { $0.preallocation = .falloc },
      with { $0.preallocation = .full }, with { $0.size = (3 << 20) + 512 * 7 },
      with { $0.size = 1 << 40 },
      with {
        $0.isExtended = true
        $0.clusterBits = 14
        $0.backing = .qcow2
        $0.backingLength = 60
        $0.preallocation = .metadata
      },
    ]

  /// Any valid shape; each feature is there now and then.
  static func random(_ random: inout SeededGenerator) -> SampleShape {
    while true {
      var shape = SampleShape()
      shape.clusterBits = 9 + random.below(13)
      shape.isVersion2 = random.chance(15)
      if random.chance(40) { shape.refcountBits = 1 << random.below(7) }
      shape.isExtended = random.chance(30)
      shape.isLazy = random.chance(20)
      shape.isCompressed = random.chance(30)
      shape.usesZstd = random.chance(15)
      if random.chance(50) { shape.backing = Backing.allCases[random.below(4)] }
      shape.backingLength = [50, 100, 150][random.below(3)]
      shape.snapshots = random.chance(40) ? 1 + random.below(3) : 0
      shape.hasVMState = shape.snapshots > 0 && random.chance(40)
      shape.hasBitmaps = random.chance(25)
      if random.chance(20) { shape.cipher = random.chance(50) ? .luks : .aes }
      if random.chance(20) { shape.dataFile = random.chance(50) ? .external : .raw }
      if random.chance(20) { shape.preallocation = Preallocation.allCases[random.below(4)] }
      shape.size = [1 << 20, 4 << 20, (5 << 20) + 512 * 3, 1 << 30, 1 << 41][random.below(5)]
      if shape.isValid { return shape }
    }
  }
}
