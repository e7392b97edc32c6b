import BlockCore
import QCOW2Format

/// What a header is to become, once it is known that the image allows it.
struct AmendPlan {
  let head: HeaderCluster
  /// 2 or 3.
  let version: UInt32
  /// log2 of the refcount width.
  let refcountOrder: Int
  private let options: AmendOptions

  var isUpgrade: Bool { version > head.header.version }
  var isDowngrade: Bool { version < head.header.version }
  var changesWidth: Bool { refcountOrder != Int(head.header.refcountOrder) }
  /// The fields alone do not say it: extensions come, go or move.
  var changesLayout: Bool { isUpgrade || isDowngrade || changesDataFile }
  private var changesDataFile: Bool {
    guard let name = options.dataFile else { return false }
    return name != head.dataFile ?? ""
  }

  /// The options that would change how an open image is read or written.
  var fixedWhileServed: [String] {
    let dropsRaw =
      options.hasRawDataFile == false && head.header.autoclear.contains(.rawExternalData)
    let changes = [
      ("compat", isUpgrade || isDowngrade), ("refcount_bits", changesWidth),
      ("data_file", changesDataFile), ("data_file_raw", dropsRaw),
    ]
    return changes.filter(\.1).map(\.0)
  }

  /// Looks at the image and changes nothing.
  ///
  /// - Throws: ``ToolError/amend(_:)`` for what cannot be.
  init(_ file: any ImageBytes, _ options: AmendOptions) throws(ToolError) {
    head = try HeaderCluster(reading: file)
    self.options = options
    version = options.version ?? head.header.version
    refcountOrder = options.refcountOrder ?? Int(head.header.refcountOrder)
    if let problem = head.header.problemForWriting(fileLength: head.fileLength) {
      throw .format(problem)
    }
    do throws(AmendError) {
      try checkOptions()
      if isDowngrade { try checkDowngrade() }
    } catch { throw .amend(error) }
    if isDowngrade, head.header.snapshotCount > 0 { try checkSnapshots(file) }
  }

  private func checkOptions() throws(AmendError) {
    let header = head.header
    if header.incompatible.contains(.corrupt) { throw .markedCorrupt }
    let hasDataFile = header.incompatible.contains(.externalDataFile)
    if options.dataFile != nil, !hasDataFile { throw .noDataFile }
    if options.hasRawDataFile == true,
      !hasDataFile || !header.autoclear.contains(.rawExternalData)
    {
      throw .rawDataFile
    }
    if let name = options.backingFile, name != head.backingFile ?? "" { throw .backingFile }
    if let format = options.backingFormat, format != head.backingFormat ?? "" {
      throw .backingFile
    }
    guard version < 3 else { return }
    if refcountOrder != 4 {
      throw options.refcountOrder == nil
        ? .downgrade(.refcountBits(1 << refcountOrder)) : .widthNeedsVersion3
    }
    if options.lazyRefcounts == true, !header.compatible.contains(.lazyRefcounts) {
      throw .lazyNeedsVersion3
    }
  }

  private func checkDowngrade() throws(AmendError) {
    let bits = head.header.incompatible
    if bits.contains(.externalDataFile) { throw .downgrade(.dataFile) }
    if bits.contains(.extendedL2) { throw .downgrade(.extendedL2) }
    let other = bits.subtracting([.dirty, .compressionType])
    if !other.isEmpty { throw .downgrade(.incompatible(other.rawValue)) }
    if head.trustedBitmaps != nil { throw .downgrade(.bitmaps) }
  }

  private func checkSnapshots(_ file: any ImageBytes) throws(ToolError) {
    let list = try SnapshotList(reading: file, head)
    let fit = list.snapshots.allSatisfy {
      $0.entry.diskSize ?? head.diskSize == head.diskSize
        && $0.entry.vmStateSize <= UInt64(UInt32.max)
    }
    if !fit { throw .amend(.downgrade(.snapshots)) }
  }
}

extension AmendPlan {
  /// The changes of fields that an image of the same layout needs, refcounts apart.
  var patches: [HeaderPatch] {
    [.compatible(compatible), .autoclear(autoclear)]
  }

  private var compatible: CompatibleFeatures {
    var bits = head.header.compatible
    switch options.lazyRefcounts {
    case true: bits.insert(.lazyRefcounts)
    case false: bits.remove(.lazyRefcounts)
    case nil: break
    }
    return bits
  }

  private var autoclear: AutoclearFeatures {
    var bits = head.header.autoclearToKeep(keepsBitmaps: head.last(.bitmaps) != nil)
    if options.hasRawDataFile == false { bits.remove(.rawExternalData) }
    return bits
  }

  /// The whole new header.
  ///
  /// - Parameters:
  ///   - cluster: The header cluster as it is.
  ///   - patches: What else changes together with it.
  /// - Returns: What is to be written.
  /// - Throws: ``ToolError/amend(_:)`` if there is no room for it.
  func rewrite(
    _ cluster: IOBuffer, with patches: [HeaderPatch]
  ) throws(ToolError) -> HeaderRewrite {
    var header = head.header
    header.version = version
    if isUpgrade { header.headerLength = UInt32(Header.newV3Length) }
    for patch in self.patches + patches { header.apply(patch) }
    if isDowngrade {
      header.headerLength = UInt32(Header.v2Length)
      (header.incompatible, header.compatible, header.autoclear) = ([], [], [])
      header.compressionType = 0
    }
    let (extensions, wanted) = (extensions(cluster), header)
    do {
      return try cluster.withBytes { bytes in
        try HeaderRewrite(bytes, to: wanted, extensions: extensions)
      }
    } catch {
      throw (error as? FormatError).map { .format($0) } ?? .amend(.headerFull)
    }
  }

  private func extensions(
    _ cluster: IOBuffer
  ) -> [(kind: HeaderExtension.Kind, data: [UInt8])] {
    var found = cluster.withBytes { head.contents($0) }
    if changesDataFile {
      found.removeAll { $0.kind == .dataFileName }
      if let name = options.dataFile, !name.isEmpty {
        let place = found.first?.kind == .backingFormat ? 1 : 0
        found.insert((.dataFileName, Array(name.utf8)), at: place)
      }
    }
    if isDowngrade { found.removeAll { $0.kind == .featureNames || $0.kind == .bitmaps } }
    let hasNames = found.contains { $0.kind == .featureNames }
    if isUpgrade, !hasNames, head.geometry.clusterSize > HeaderBytes.largestClusterWithoutNames {
      found.append((.featureNames, FeatureNames.standard.encoded))
    }
    return found
  }
}
