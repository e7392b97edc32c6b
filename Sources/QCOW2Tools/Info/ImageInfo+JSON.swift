import BlockCore
import QCOW2Codec
import QCOW2Format

/// `info` in JSON: the keys of qemu-img in its order.
extension ImageInfo {
  /// The JSON object, with a line break.
  package var json: String {
    var members: [(String, JSONText)] = []
    if let backingFormat {
      members.append(("backing-filename-format", .string(backingFormat)))
    }
    if !snapshots.isEmpty { members.append(("snapshots", .array(snapshots.map(\.json)))) }
    members += [
      ("virtual-size", .unsigned(virtualSize)),
      ("filename", .string(path)),
      ("cluster-size", .unsigned(header.geometry.clusterSize)),
      ("format", .string("qcow2")),
      ("actual-size", .unsigned(diskSize)),
      ("format-specific", .object([("type", .string("qcow2")), ("data", .object(specific))])),
    ]
    if let fullBackingFile {
      members.append(("full-backing-filename", .string(fullBackingFile)))
    }
    if encryption != nil { members.append(("encrypted", .bool(true))) }
    if let backingFile { members.append(("backing-filename", .string(backingFile))) }
    members.append(("dirty-flag", .bool(isDirty)))
    return JSONText.object(members).text() + "\n"
  }

  var isDirty: Bool { header.incompatible.contains(.dirty) }

  /// The "format specific information".
  var specific: [(String, JSONText)] {
    let isV3 = header.version == 3
    let hasDataFile = header.incompatible.contains(.externalDataFile)
    var members: [(String, JSONText)] = [
      ("compat", .string(isV3 ? "1.1" : "0.10")),
      ("compression-type", .string(header.compressionType == 1 ? "zstd" : "zlib")),
    ]
    if isV3 {
      let isLazy = header.compatible.contains(.lazyRefcounts)
      members.append(("lazy-refcounts", .bool(isLazy)))
    }
    if !bitmaps.isEmpty { members.append(("bitmaps", .array(bitmaps.map(\.json)))) }
    members.append(("refcount-bits", .unsigned(1 << UInt64(header.refcountOrder))))
    if let encryption { members.append(("encrypt", .object(encryption.members))) }
    if isV3 && hasDataFile {
      if let dataFile { members.append(("data-file", .string(dataFile))) }
      let isRaw = header.autoclear.contains(.rawExternalData)
      members.append(("data-file-raw", .bool(isRaw)))
    }
    if isV3 {
      members.append(("corrupt", .bool(header.incompatible.contains(.corrupt))))
      members.append(("extended-l2", .bool(header.incompatible.contains(.extendedL2))))
    }
    return members
  }
}

extension Snapshot {
  fileprivate var json: JSONText {
    var members: [(String, JSONText)] = []
    if let count = entry.instructionCount { members.append(("icount", .unsigned(count))) }
    members += [
      ("vm-clock-nsec", .unsigned(entry.guestClock % 1_000_000_000)),
      ("name", .string(name)),
      ("date-sec", .unsigned(UInt64(entry.seconds))),
      ("date-nsec", .unsigned(UInt64(entry.nanoseconds))),
      ("vm-clock-sec", .unsigned(entry.guestClock / 1_000_000_000)),
      ("id", .string(id)),
      ("vm-state-size", .unsigned(entry.vmStateSize)),
    ]
    return .object(members)
  }
}

extension BitmapDirectory.Item {
  fileprivate var json: JSONText {
    var flags: [JSONText] = []
    if entry.flags.contains(.inUse) { flags.append(.string("in-use")) }
    if entry.flags.contains(.auto) { flags.append(.string("auto")) }
    return .object([
      ("flags", .array(flags)), ("name", .string(name)),
      ("granularity", .unsigned(1 << UInt64(entry.granularityBits))),
    ])
  }
}

extension ImageInfo.Encryption {
  fileprivate var members: [(String, JSONText)] {
    switch self {
    case .aes: [("format", .string("aes"))]
    case .luks(let header): header.members
    }
  }
}

extension LUKSFields {
  fileprivate var members: [(String, JSONText)] {
    let words = mode.split(separator: "-", maxSplits: 1)
    let generator = words.count > 1 ? words[1].split(separator: ":", maxSplits: 1) : []
    var members: [(String, JSONText)] = []
    if let name = generator.first { members.append(("ivgen-alg", .string(String(name)))) }
    members.append(("hash-alg", .string(hash)))
    members.append(("cipher-alg", .string(algorithm(mode: words.first ?? ""))))
    members.append(("uuid", .string(uuid)))
    if generator.count > 1 {
      members.append(("ivgen-hash-alg", .string(String(generator[1]))))
    }
    members += [
      ("format", .string("luks")),
      ("cipher-mode", .string(String(words.first ?? ""))),
      ("slots", .array(slots.map(\.json))),
      ("payload-offset", .unsigned(UInt64(payloadSector) * 512)),
      ("master-key-iters", .unsigned(UInt64(digestIterations))),
    ]
    return members
  }

  /// QEMU's name: the cipher and the bits of its key, of which XTS needs two.
  private func algorithm(mode: Substring) -> String {
    let bits = UInt64(keyBytes) * 8 / (mode == "xts" ? 2 : 1)
    return "\(cipher)-\(bits)"
  }
}

extension LUKSFields.Slot {
  fileprivate var json: JSONText {
    var members: [(String, JSONText)] = [("active", .bool(isActive))]
    if isActive { members.append(("iters", .unsigned(UInt64(iterations)))) }
    members.append(("key-offset", .unsigned(UInt64(materialSector) * 512)))
    if isActive { members.append(("stripes", .unsigned(UInt64(stripes)))) }
    return .object(members)
  }
}
