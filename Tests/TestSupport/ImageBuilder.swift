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
  /// Fills a data cluster: the guest cluster and its host bytes.
  package var fill: (Int, UnsafeMutableRawPointer) -> Void = { _, _ in }

  package init() {}

  private var clusterSize: Int { 1 << clusterBits }
  private var l2Entries: Int { clusterSize / 8 }
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
    let bytes = ImageBytes(capacity: capacity)
    let layout = plan()
    bytes.setLength(layout.next * clusterSize)
    writeHeader(bytes, layout)
    writeTables(bytes, layout)
    if hasSnapshot { writeSnapshotTable(bytes, layout) }
    writeRefcounts(bytes, layout)
    return bytes
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
      switch mappings[cluster] {
      case .data, .allocatedZero: layout.data[cluster] = layout.take(1)
      case .zero, nil: break
      }
    }
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
    guard version >= 3 else { return }
    bytes.put64(incompatible, 72)
    bytes.put64(compatible, 80)
    bytes.put64(autoclear, 88)
    bytes.put32(UInt32(refcountOrder), 96)
    bytes.put32(104, 100)
    bytes.put(extensions, 104)
    if !bitmaps.isEmpty {
      bytes.put64(autoclear | 1, 88)
      layout.bitmaps.write(to: bytes, extensionAt: 104 + extensions.count)
    }
  }

  private func writeTables(_ bytes: ImageBytes, _ layout: Layout) {
    let copied: UInt64 = hasSnapshot ? 0 : 1 << 63
    for (index, table) in layout.l2 {
      let entry = UInt64(table * clusterSize) | copied
      bytes.put64(entry, layout.l1 * clusterSize + index * 8)
      if hasSnapshot { bytes.put64(entry, layout.snapshotL1 * clusterSize + index * 8) }
    }
    for (cluster, mapping) in mappings {
      guard let table = layout.l2[cluster / l2Entries] else { continue }
      var entry: UInt64 = mapping == .data ? 0 : 1
      if let data = layout.data[cluster] {
        entry |= UInt64(data * clusterSize) | copied
        if mapping == .data { fill(cluster, bytes.base + data * clusterSize) }
      }
      bytes.put64(entry, table * clusterSize + cluster % l2Entries * 8)
    }
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
    let shared = Set(layout.l2.values).union(layout.data.values)
    for cluster in 0..<layout.next {
      let count = hasSnapshot && shared.contains(cluster) ? 2 : 1
      let block = (layout.refcountBlocks + cluster / perBlock) * clusterSize
      putRefcount(bytes, block, cluster % perBlock, UInt64(count))
    }
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
