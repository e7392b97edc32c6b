import BlockCore
import JSON
import QCOW2Codec
import QCOW2Format

/// The answer of `info`, as qemu-img gives it.
extension ImageInfo {
  /// What was read, as it is shown.
  package var report: ImageInfoReport { report(limits: nil) }

  /// What was read, as it is shown.
  ///
  /// - Parameter limits: What the host asks of transfers, if that is to be shown.
  /// - Returns: The answer.
  package func report(limits: HostLimits?) -> ImageInfoReport {
    var members: [JSONValue.Member] = []
    if let limits {
      let unit = header.geometry.clusterSize
      let isExtended = header.incompatible.contains(.extendedL2)
      members.append(
        limits.member(
          requestAlignment: encryption == nil ? 1 : 512,
          zeroAlignment: isExtended ? unit / 32 : unit, discardAlignment: unit))
    }
    members.append(
      ImageInfoReport.file(path: path, length: fileLength, stored: diskSize, limits))
    if let backingFormat {
      members.append(.init("backing-filename-format", .string(backingFormat)))
    }
    if !snapshots.isEmpty { members.append(.init("snapshots", .array(snapshots.map(\.json)))) }
    members += [
      .init("virtual-size", .number(virtualSize)),
      .init("filename", .string(path)),
      .init("cluster-size", .number(header.geometry.clusterSize)),
      .init("format", .string("qcow2")),
      .init("actual-size", .number(diskSize)),
      .init(
        "format-specific",
        .object([.init("type", .string("qcow2")), .init("data", .object(specific))])),
    ]
    if let fullBackingFile {
      members.append(.init("full-backing-filename", .string(fullBackingFile)))
    }
    if encryption != nil { members.append(.init("encrypted", .bool(true))) }
    if let backingFile { members.append(.init("backing-filename", .string(backingFile))) }
    members.append(.init("dirty-flag", .bool(isDirty)))
    return ImageInfoReport(members)
  }

  private var isDirty: Bool { header.incompatible.contains(.dirty) }

  /// The "format specific information".
  private var specific: [JSONValue.Member] {
    let isV3 = header.version == 3
    let hasDataFile = header.incompatible.contains(.externalDataFile)
    var members: [JSONValue.Member] = [
      .init("compat", .string(isV3 ? "1.1" : "0.10")),
      .init("compression-type", .string(header.compressionType == 1 ? "zstd" : "zlib")),
    ]
    if isV3 {
      let isLazy = header.compatible.contains(.lazyRefcounts)
      members.append(.init("lazy-refcounts", .bool(isLazy)))
    }
    if !bitmaps.isEmpty { members.append(.init("bitmaps", .array(bitmaps.map(\.json)))) }
    members.append(.init("refcount-bits", .number(1 << UInt64(header.refcountOrder))))
    if let encryption { members.append(.init("encrypt", .object(encryption.members))) }
    if isV3 && hasDataFile {
      if let dataFile { members.append(.init("data-file", .string(dataFile))) }
      let isRaw = header.autoclear.contains(.rawExternalData)
      members.append(.init("data-file-raw", .bool(isRaw)))
    }
    if isV3 {
      members.append(.init("corrupt", .bool(header.incompatible.contains(.corrupt))))
      members.append(.init("extended-l2", .bool(header.incompatible.contains(.extendedL2))))
    }
    return members
  }
}

extension BitmapDirectory.Item {
  fileprivate var json: JSONValue {
    var flags: [JSONValue] = []
    if entry.flags.contains(.inUse) { flags.append(.string("in-use")) }
    if entry.flags.contains(.auto) { flags.append(.string("auto")) }
    return .object([
      .init("flags", .array(flags)), .init("name", .string(name)),
      .init("granularity", .number(1 << UInt64(entry.granularityBits))),
    ])
  }
}

extension ImageInfo.Encryption {
  fileprivate var members: [JSONValue.Member] {
    switch self {
    case .aes: [.init("format", .string("aes"))]
    case .luks(let header): header.members
    }
  }
}

extension LUKSFields {
  fileprivate var members: [JSONValue.Member] {
    let words = mode.split(separator: "-", maxSplits: 1)
    let generator = words.count > 1 ? words[1].split(separator: ":", maxSplits: 1) : []
    var members: [JSONValue.Member] = []
    if let name = generator.first { members.append(.init("ivgen-alg", .string(String(name)))) }
    members.append(.init("detached-header", .bool(false)))
    members.append(.init("hash-alg", .string(hash)))
    members.append(.init("cipher-alg", .string(algorithm(mode: words.first ?? ""))))
    members.append(.init("uuid", .string(uuid)))
    if generator.count > 1 {
      members.append(.init("ivgen-hash-alg", .string(String(generator[1]))))
    }
    members += [
      .init("format", .string("luks")),
      .init("cipher-mode", .string(String(words.first ?? ""))),
      .init("slots", .array(slots.map(\.json))),
      .init("payload-offset", .number(UInt64(payloadSector) * 512)),
      .init("master-key-iters", .number(UInt64(digestIterations))),
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
  fileprivate var json: JSONValue {
    var members: [JSONValue.Member] = [.init("active", .bool(isActive))]
    if isActive { members.append(.init("iters", .number(UInt64(iterations)))) }
    members.append(.init("key-offset", .number(UInt64(materialSector) * 512)))
    if isActive { members.append(.init("stripes", .number(UInt64(stripes)))) }
    return .object(members)
  }
}
