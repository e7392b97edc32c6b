import QCOW2Codec

/// Builds qcow2 images byte by byte from the specification; shares nothing with the engine.
@safe package struct ImageBuilder {
  /// What a guest cluster is mapped to at first.
  package enum Mapping: Sendable {
    /// A data cluster, to be filled by `fill`.
    case data
    /// The zero flag, with a cluster allocated behind it (version 3).
    case allocatedZero
    /// The zero flag alone (version 3).
    case zero
    /// Stored blocks of deflate at an odd place, its host clusters shared with others.
    case compressed
    /// Extended L2 entries: the two halves of the bitmap, with or without a host cluster behind it.
    ///
    /// What is not allocated holds garbage in the host cluster.
    case subclusters(allocated: UInt32, zero: UInt32, hasHost: Bool)

    var hasHost: Bool {
      switch self {
      case .data, .allocatedZero, .subclusters(_, _, true): true
      case .zero, .compressed, .subclusters: false
      }
    }
  }

  package var clusterBits = 16
  package var version = 3
  package var refcountOrder = 4
  package var size = 1 << 20
  /// Guest clusters that are mapped.
  package var mappings: [Int: Mapping] = [:]
  /// Take an internal snapshot of all that is mapped.
  package var hasSnapshot = false
  package var incompatible: UInt64 = 0
  package var compatible: UInt64 = 0
  package var autoclear: UInt64 = 0
  /// Extensions: bytes put after the standard header, version 3 only.
  package var extensions: [UInt8] = []
  /// Persistent bitmaps, version 3 only: adds their extension and sets autoclear bit 0.
  package var bitmaps: [BitmapSpec] = []
  package var features = ImageFeatures()
  /// Fills a data cluster: the guest cluster and its plain bytes.
  package var fill: (Int, UnsafeMutableRawPointer) -> Void = { _, _ in }

  package init() {}

  private var clusterSize: Int { 1 << clusterBits }
  private var entrySize: Int { features.isExtended ? 16 : 8 }
  private var l2Entries: Int { clusterSize / entrySize }
  private var l1Size: Int {
    max((size + clusterSize * l2Entries - 1) / (clusterSize * l2Entries), 1)
  }
  private func clusters(_ bytes: Int) -> Int { (bytes + clusterSize - 1) / clusterSize }

  /// Where everything lies, in host clusters.
  private struct Layout {
    var next = 1
    var l1 = 0
    var snapshotTable = 0
    var snapshotL1 = 0
    var l2: [Int: Int] = [:]
    var data: [Int: Int] = [:]
    /// Where each compressed cluster begins, in bytes.
    var compressed: [Int: Int] = [:]
    var compressedArea = 0..<0
    var refcountTable = 0
    var refcountTableClusters = 0
    var refcountBlocks = 0
    var refcountBlockCount = 0
    var bitmaps = BitmapLayout()

    mutating func take(_ count: Int) -> Int {
      next += count
      return next - count
    }
  }

  package func build(capacity: Int = 1 << 32) -> ImageBytes {
    buildFiles(capacity: capacity).image
  }

  /// The image and, with `features.dataFile`, its external data file.
  package func buildFiles(capacity: Int = 1 << 32) -> (image: ImageBytes, data: ImageBytes?) {
    let bytes = ImageBytes(capacity: capacity)
    let layout = plan()
    bytes.setLength(layout.next * clusterSize)
    writeHeader(bytes, layout)
    let data = features.dataFile.map { _ in ImageBytes(capacity: capacity) }
    data?.setLength(size)
    writeTables(bytes, data ?? bytes, layout)
    writeCompressed(bytes, layout)
    if hasSnapshot { writeSnapshotTable(bytes, layout) }
    writeRefcounts(bytes, layout)
    return (bytes, data)
  }

  private func plan() -> Layout {
    var layout = Layout()
    layout.l1 = layout.take(clusters(l1Size * 8))
    if hasSnapshot {
      layout.snapshotL1 = layout.take(clusters(l1Size * 8))
      layout.snapshotTable = layout.take(1)
    }
    for cluster in mappings.keys.sorted() {
      let table = cluster / l2Entries
      if layout.l2[table] == nil { layout.l2[table] = layout.take(1) }
      if mappings[cluster]?.hasHost == true {
        layout.data[cluster] = features.dataFile == nil ? layout.take(1) : cluster
      }
    }
    placeCompressed(&layout)
    layout.bitmaps = BitmapLayout(
      bitmaps, clusterBits: clusterBits, size: size, from: layout.next)
    layout.next += layout.bitmaps.clusters
    let perBlock = (clusterSize * 8) >> refcountOrder
    var blocks = 1
    var tableClusters = 1
    while layout.next + blocks + tableClusters > blocks * perBlock { blocks += 1 }
    tableClusters = clusters(blocks * 8)
    while layout.next + blocks + tableClusters > blocks * perBlock { blocks += 1 }
    layout.refcountTableClusters = tableClusters
    layout.refcountBlockCount = blocks
    layout.refcountTable = layout.take(tableClusters)
    layout.refcountBlocks = layout.take(blocks)
    return layout
  }

  /// Places compressed clusters one after the other, with odd gaps, across host clusters.
  private func placeCompressed(_ layout: inout Layout) {
    let base = layout.next * clusterSize
    var at = base
    for (number, cluster) in mappings.keys.sorted().enumerated() {
      guard case .compressed = mappings[cluster] else { continue }
      at += number % 4 * 3
      if sectors(at) >= 1 << (clusterBits - 8) { at = (at + 511) & ~511 }
      layout.compressed[cluster] = at
      at += StoredDeflate.length(clusterSize)
    }
    let first = layout.take(clusters(at - base))
    layout.compressedArea = first..<layout.next
  }

  /// The additional sectors of the compressed cluster that begins at `offset`.
  private func sectors(_ offset: Int) -> Int {
    (offset % 512 + StoredDeflate.length(clusterSize) - 1) / 512
  }

  private func writeCompressed(_ bytes: ImageBytes, _ layout: Layout) {
    let plain = UnsafeMutableRawBufferPointer.allocate(byteCount: clusterSize, alignment: 16)
    defer { plain.deallocate() }
    for (cluster, offset) in layout.compressed {
      if let start = plain.baseAddress { fill(cluster, start) }
      bytes.put(StoredDeflate.wrap(UnsafeRawBufferPointer(plain)), offset)
    }
  }

  private func writeHeader(_ bytes: ImageBytes, _ layout: Layout) {
    bytes.put32(0x5146_49fb, 0)
    bytes.put32(UInt32(version), 4)
    bytes.put32(UInt32(clusterBits), 20)
    bytes.put64(UInt64(size), 24)
    bytes.put32(UInt32(l1Size), 36)
    bytes.put64(UInt64(layout.l1 * clusterSize), 40)
    bytes.put64(UInt64(layout.refcountTable * clusterSize), 48)
    bytes.put32(UInt32(layout.refcountTableClusters), 56)
    if hasSnapshot {
      bytes.put32(1, 60)
      bytes.put64(UInt64(layout.snapshotTable * clusterSize), 64)
    }
    if features.cipher != nil { bytes.put32(1, 32) }
    if features.backing != nil {
      let name = Array("base".utf8)
      bytes.put64(UInt64(clusterSize - 16), 8)
      bytes.put32(UInt32(name.count), 16)
      bytes.put(name, clusterSize - 16)
    }
    guard version >= 3 else { return }
    let bits: UInt64 = (features.dataFile == nil ? 0 : 4) | (features.isExtended ? 16 : 0)
    bytes.put64(incompatible | bits, 72)
    bytes.put64(compatible, 80)
    bytes.put64(autoclear | (features.dataFile == .raw ? 2 : 0), 88)
    bytes.put32(UInt32(refcountOrder), 96)
    bytes.put32(104, 100)
    bytes.put(extensions, 104)
    if !bitmaps.isEmpty {
      bytes.put64(bytes.be64(88) | 1, 88)
      layout.bitmaps.write(to: bytes, extensionAt: 104 + extensions.count)
    }
  }

  private func writeTables(_ bytes: ImageBytes, _ data: ImageBytes, _ layout: Layout) {
    let copied: UInt64 = hasSnapshot ? 0 : 1 << 63
    for (index, table) in layout.l2 {
      let entry = UInt64(table * clusterSize) | copied
      bytes.put64(entry, layout.l1 * clusterSize + index * 8)
      if hasSnapshot { bytes.put64(entry, layout.snapshotL1 * clusterSize + index * 8) }
    }
    for (cluster, mapping) in mappings {
      guard let table = layout.l2[cluster / l2Entries] else { continue }
      let at = table * clusterSize + cluster % l2Entries * entrySize
      let (descriptor, bitmap) = entry(mapping, cluster, layout)
      bytes.put64(descriptor, at)
      if features.isExtended { bytes.put64(bitmap, at + 8) }
      if let host = layout.data[cluster] { writeData(data, mapping, cluster, host) }
    }
  }

  private func entry(
    _ mapping: Mapping, _ cluster: Int, _ layout: Layout
  ) -> (descriptor: UInt64, bitmap: UInt64) {
    let copied: UInt64 = hasSnapshot ? 0 : 1 << 63
    let host = layout.data[cluster].map { UInt64($0 * clusterSize) | copied } ?? 0
    switch mapping {
    case .data: return (host, 0xffff_ffff)
    case .zero, .allocatedZero: return (host | (features.isExtended ? 0 : 1), 0xffff_ffff << 32)
    case .subclusters(let allocated, let zero, _):
      return (host, UInt64(zero) << 32 | UInt64(allocated))
    case .compressed:
      let offset = layout.compressed[cluster] ?? 0
      let shift = UInt64(62 - (clusterBits - 8))
      return (1 << 62 | UInt64(sectors(offset)) << shift | UInt64(offset), 0)
    }
  }

  /// Fills a host cluster: the guest's data, enciphered, and garbage where none is mapped.
  private func writeData(_ bytes: ImageBytes, _ mapping: Mapping, _ cluster: Int, _ host: Int) {
    let start = bytes.base + host * clusterSize
    if host * clusterSize + clusterSize > bytes.length {
      bytes.setLength(host * clusterSize + clusterSize)
    }
    switch mapping {
    case .data: fill(cluster, start)
    case .subclusters(let allocated, _, _):
      fill(cluster, start)
      for index in 0..<32 where allocated & 1 << UInt32(index) == 0 {
        let size = clusterSize / 32
        (start + index * size).initializeMemory(as: UInt8.self, repeating: 0x99, count: size)
      }
    case .allocatedZero, .zero, .compressed: return
    }
    guard let basis = features.cipher else { return }
    let sector = (basis == .guest ? cluster : host) * clusterSize / 512
    ToyCipher(basis).decrypt(start, count: clusterSize, firstSector: UInt64(sector))
  }

  private func writeSnapshotTable(_ bytes: ImageBytes, _ layout: Layout) {
    let start = layout.snapshotTable * clusterSize
    bytes.put64(UInt64(layout.snapshotL1 * clusterSize), start)
    bytes.put32(UInt32(l1Size), start + 8)
    bytes.put16(1, start + 12)
    bytes.put16(4, start + 14)
    bytes.put32(16, start + 36)
    bytes.put64(UInt64(size), start + 48)
    bytes.put(Array("1test".utf8), start + 56)
  }

  private func writeRefcounts(_ bytes: ImageBytes, _ layout: Layout) {
    let perBlock = (clusterSize * 8) >> refcountOrder
    for block in 0..<layout.refcountBlockCount {
      bytes.put64(
        UInt64((layout.refcountBlocks + block) * clusterSize),
        layout.refcountTable * clusterSize + block * 8)
    }
    for (cluster, count) in references(layout) where count > 0 {
      let block = (layout.refcountBlocks + cluster / perBlock) * clusterSize
      putRefcount(bytes, block, cluster % perBlock, UInt64(count))
    }
  }

  /// The references to each host cluster.
  private func references(_ layout: Layout) -> [(cluster: Int, count: Int)] {
    var counts = Array(repeating: 1, count: layout.next)
    for host in layout.compressedArea { counts[host] = 0 }
    for offset in layout.compressed.values {
      for host in hostClusters(offset) { counts[host] += 1 }
    }
    if hasSnapshot {
      var shared = Set(layout.l2.values).union(layout.data.values)
      for offset in layout.compressed.values { shared.formUnion(hostClusters(offset)) }
      for host in shared { counts[host] *= 2 }
    }
    return counts.enumerated().map { ($0.offset, $0.element) }
  }

  /// The host clusters that the sectors of a compressed cluster lie in.
  private func hostClusters(_ offset: Int) -> ClosedRange<Int> {
    let end = (offset / 512 + sectors(offset) + 1) * 512
    return (offset / clusterSize)...((end - 1) / clusterSize)
  }

  private func putRefcount(_ bytes: ImageBytes, _ block: Int, _ index: Int, _ value: UInt64) {
    let bits = 1 << refcountOrder
    if bits >= 8 {
      for byte in 0..<(bits / 8) {
        let shift = UInt64((bits / 8 - 1 - byte) * 8)
        let part = UInt8(truncatingIfNeeded: value >> shift)
        bytes.put([part], block + index * bits / 8 + byte)
      }
    } else {
      let at = block + index * bits / 8
      let old = bytes.base.load(fromByteOffset: at, as: UInt8.self)
      bytes.put([old | UInt8(value) << UInt8(index * bits % 8)], at)
    }
  }
}
