package import BlockCore

/// An image far larger than memory, whose bytes are computed when they are read; data is written
/// nowhere.
///
/// Every guest cluster is mapped, in tables one after another. Counts what is read of it.
package final class SyntheticImage: HostFile, @unchecked Sendable {  // why: one thread, or `lock`
  package enum Area: Sendable { case header, refcounts, l1, l2, data }

  package let clusterBits: Int
  package let size: UInt64
  /// Guest cluster g lies in the data cluster g ^ scramble.
  package var scramble: UInt64 = 0
  /// Data reads put the number of each guest sector into its first eight bytes.
  package var fillsData = true
  /// Reads of data at these host offsets fail.
  package var badData: Set<UInt64> = []
  private let host: SimulatedHost?
  private let lock = FutexLock(.leaf)
  private var readsOf: [Area: Int] = [:]
  private var bytesOf: [Area: UInt64] = [:]
  private var inFlight: [Area: Int] = [:]
  private var mostInFlight: [Area: Int] = [:]

  package init(size: UInt64, clusterBits: Int = 16, host: SimulatedHost? = nil) {
    self.size = size
    self.clusterBits = clusterBits
    self.host = host
  }

  // MARK: Counts

  package func reads(_ area: Area) -> Int { lock.withLock { readsOf[area, default: 0] } }
  package func bytes(_ area: Area) -> UInt64 { lock.withLock { bytesOf[area, default: 0] } }
  /// The most reads of an area that were under way at once.
  package func depth(_ area: Area) -> Int { lock.withLock { mostInFlight[area, default: 0] } }
  package func resetCounts() {
    lock.withLock { (readsOf, bytesOf, mostInFlight) = ([:], [:], [:]) }
  }

  // MARK: Layout

  private var cluster: UInt64 { 1 << UInt64(clusterBits) }
  private var clusters: UInt64 { (size + cluster - 1) / cluster }
  private var perTable: UInt64 { cluster / 8 }
  package var l1Entries: UInt64 { (clusters + perTable - 1) / perTable }
  package var l1Offset: UInt64 { 2 * cluster }
  package var l2Offset: UInt64 { l1Offset + (l1Entries * 8 + cluster - 1) / cluster * cluster }
  package var dataOffset: UInt64 { l2Offset + l1Entries * cluster }
  private var end: UInt64 { dataOffset + clusters * cluster }

  private func area(_ offset: UInt64) -> Area {
    if offset < cluster { return .header }
    if offset < l1Offset { return .refcounts }
    if offset < l2Offset { return .l1 }
    return offset < dataOffset ? .l2 : .data
  }

  private func word(_ offset: UInt64) -> UInt64 {
    let copied: UInt64 = 1 << 63
    switch area(offset) {
    case .l1:
      let index = (offset - l1Offset) / 8
      return index < l1Entries ? copied | (l2Offset + index * cluster) : 0
    case .l2:
      let index = (offset - l2Offset) / 8
      return index < clusters ? copied | (dataOffset + (index ^ scramble) * cluster) : 0
    case .data:
      if offset % 512 != 0 { return 0 }
      let position = offset - dataOffset
      let guest = (position / cluster ^ scramble) * cluster + position % cluster
      return guest / 512
    case .header, .refcounts: return 0
    }
  }

  private func fillHeader(_ memory: UnsafeMutableRawPointer, _ count: Int) {
    func put32(_ value: UInt32, _ at: Int) {
      if at + 4 <= count {
        memory.storeBytes(of: value.bigEndian, toByteOffset: at, as: UInt32.self)
      }
    }
    func put64(_ value: UInt64, _ at: Int) {
      put32(UInt32(value >> 32), at)
      put32(UInt32(truncatingIfNeeded: value), at + 4)
    }
    put32(0x5146_49fb, 0)
    put32(3, 4)
    put32(UInt32(clusterBits), 20)
    put64(size, 24)
    put32(UInt32(l1Entries), 36)
    put64(l1Offset, 40)
    put64(cluster, 48)
    put32(1, 56)
    put32(4, 96)
    put32(104, 100)
  }

  // MARK: HostFile

  package let traits = HostFileTraits()

  package func read(into buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    guard let memory = buffer.memory else { throw .invalid }
    let area = area(offset.bytes)
    lock.withLock {
      readsOf[area, default: 0] += 1
      bytesOf[area, default: 0] += UInt64(buffer.count)
      inFlight[area, default: 0] += 1
      mostInFlight[area] = max(mostInFlight[area, default: 0], inFlight[area, default: 0])
    }
    if let host { await host.complete("read at \(offset.bytes)+\(buffer.count)") }
    lock.withLock { inFlight[area, default: 0] -= 1 }
    if area == .data && badData.contains(offset.bytes) { throw .io }
    if area == .data && !fillsData { return }
    memory.initializeMemory(as: UInt8.self, repeating: 0, count: buffer.count)
    if area == .header && offset.bytes == 0 { return fillHeader(memory, buffer.count) }
    let step = area == .data ? 512 : 8
    if area == .l2 && scramble == 0 { return fillTable(memory, buffer.count, offset.bytes) }
    for position in stride(from: 0, to: buffer.count, by: step) {
      let value = word(offset.bytes + UInt64(position))
      memory.storeBytes(of: value.bigEndian, toByteOffset: position, as: UInt64.self)
    }
  }

  /// What ``word(_:)`` says for consecutive entries of consecutive clusters, without the detours.
  private func fillTable(_ memory: UnsafeMutableRawPointer, _ count: Int, _ offset: UInt64) {
    let first = (offset - l2Offset) / 8
    let entries = memory.assumingMemoryBound(to: UInt64.self)
    let count = min(count / 8, clusters > first ? Int(clusters - first) : 0)
    let step = cluster
    var value = 1 << 63 | (dataOffset + first * step)
    var index = 0
    while index < count {
      entries[index] = value.bigEndian
      value &+= step
      index &+= 1
    }
  }

  package func write(from buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    guard area(offset.bytes) == .data else { throw .notSupported }
    if let host { await host.complete("write at \(offset.bytes)+\(buffer.count)") }
  }
  package func writeZeroes(at offset: HostOffset, length: UInt64) async throws(Errno) {
    throw .notSupported
  }
  package func punchHole(at offset: HostOffset, length: UInt64) async throws(Errno) {
    throw .notSupported
  }
  package func sync() async throws(Errno) { throw .notSupported }
  package func length() async throws(Errno) -> UInt64 { end }
  package func setLength(_ length: UInt64) async throws(Errno) { throw .notSupported }
  package func extend(to length: UInt64) async throws(Errno) { throw .notSupported }
}
