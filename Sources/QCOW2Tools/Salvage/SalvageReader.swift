package import BlockCore
package import QCOW2Codec
package import QCOW2Format

/// Reads what is readable of a disk in an image that may be destroyed in any way, and says what is not.
///
/// Refcounts are never looked at. What cannot be read is zeros, and in ``losses``. Writes nothing. Not
/// thread-safe: one call at a time. Memory: the L1 table, 32 MiB at most, a few L2 tables and the list of losses.
package final class SalvageReader {
  /// What a range of the disk is.
  package enum Content: Equatable, Sendable {
    case data(HostOffset)
    case compressed
    case zero
    /// What the backing file has, or zeros without one.
    case unallocated
    case lost(LossReason)
  }

  /// What an image's name and options lead to.
  package struct Surroundings {
    /// The external data file; nil if there is none, or it cannot be opened.
    package var dataFile: (any ImageBytes)?
    package var secret: Secret?
    /// Chooses among the snapshots that can be read.
    package var snapshot: (([Snapshot]) -> Snapshot?)?

    package init(
      dataFile: (any ImageBytes)? = nil, secret: Secret? = nil,
      snapshot: (([Snapshot]) -> Snapshot?)? = nil
    ) {
      self.dataFile = dataFile
      self.secret = secret
      self.snapshot = snapshot
    }
  }

  private static let cachedTables = 8

  private let file: any ImageBytes
  private let head: SalvageHeader
  private let rules: EntryRules
  private let geometry: ClusterGeometry
  private let dataFile: (any ImageBytes)?
  private let cipher: (any SectorCipher)?
  private var l1: [Result<L1Entry, L1Problem>] = []
  private var tables: [(offset: HostOffset, table: Table)] = []
  private var list = LossList()
  private var inflated: (entry: L2Entry, bytes: IOBuffer)?
  private let codecs: [ClusterCodec]
  /// What could not be used, and what stands in for it.
  package private(set) var notes: [String]

  private struct L1Problem: Error { let reason: LossReason }

  private struct Table {
    let bytes: IOBuffer
    /// Of the sectors of 512 bytes, those that could not be read, and why.
    var lost: [Int: LossReason] = [:]
  }

  /// The bytes of the disk, in whole sectors.
  package var size: UInt64 {
    head.header.size / 512 * 512 + (head.header.size % 512 == 0 ? 0 : 512)
  }
  /// What the header says of a backing file; the name is nil if it cannot be read.
  package var backingFile: String? { head.backingFile }
  package var backingFormat: String? { head.backingFormat }
  package var hasBackingFile: Bool { head.hasBackingFile }
  package var dataFileName: String? { head.dataFile }
  package var hasDataFile: Bool { rules.hasDataFile }
  /// What has been lost so far.
  package var losses: [Loss] { list.sorted }
  package var clusterSize: UInt64 { geometry.clusterSize }

  /// Finds the tables.
  ///
  /// - Throws: ``ToolError/salvage(_:)`` if nothing says where they are; ``ToolError/luks(_:)`` if the secret
  ///   does not unlock the image.
  package init(
    _ file: any ImageBytes, _ options: SalvageOptions = SalvageOptions(),
    _ surroundings: Surroundings = Surroundings()
  ) throws(ToolError) {
    self.file = file
    var head = try SalvageHeader(file, options, needsL1: surroundings.snapshot == nil)
    if let wanted = surroundings.snapshot {
      head.select(try Self.snapshot(file, head.header, wanted))
    }
    notes = head.notes
    self.head = head
    rules = EntryRules(head.header)
    geometry = head.header.geometry
    dataFile = surroundings.dataFile
    cipher = try Self.cipher(head, surroundings.secret)
    let first: CompressionKind =
      head.header.incompatible.contains(.compressionType) ? .zstd : .zlib
    let size = Int(head.header.geometry.clusterSize)
    codecs = [first, first == .zlib ? .zstd : .zlib].map { ClusterCodec($0, clusterSize: size) }
    readL1()
    if options.scans { fillFromScan() }
  }

  private static func snapshot(
    _ file: any ImageBytes, _ header: Header, _ choose: ([Snapshot]) -> Snapshot?
  ) throws(ToolError) -> SnapshotEntry {
    var table = SnapshotTableReader(count: min(header.snapshotCount, FormatLimit.snapshots))
    let start = HostOffset(header.snapshotsOffset)
    while header.snapshotsOffset < file.length, let wanted = table.wanted {
      let block = try file.block(at: start + wanted.position, count: wanted.count)
      // Those before one that cannot be read can still be found.
      do throws(FormatError) {
        try block.withBytes { bytes throws(FormatError) in try table.take(bytes) }
      } catch { break }
    }
    guard let found = choose(table.snapshots) else { throw .salvage(.noSnapshot) }
    return found.entry
  }

  private static func cipher(
    _ head: SalvageHeader, _ secret: Secret?
  ) throws(ToolError) -> (any SectorCipher)? {
    guard head.header.cryptMethod > 0 else { return nil }
    guard let secret else { throw .salvage(.secretMissing) }
    if head.header.cryptMethod == 1 {
      do throws(CipherError) { return try LegacyAESCipher(passphrase: secret) } catch {
        throw .salvage(.cipher(error))
      }
    }
    guard let area = head.encryptionArea() else { throw .salvage(.noEncryptionHeader) }
    defer { withExtendedLifetime(area) {} }
    do throws(LUKSError) {
      return try unsafe LUKSCipher(
        unlocking: UnsafeRawBufferPointer(start: area.base, count: area.count), passphrase: secret)
    } catch { throw .luks(error) }
  }

  // MARK: Tables

  private func readL1() {
    let offset = head.header.l1TableOffset
    let count = Int(head.header.l1Size)
    guard offset != 0 || count == 0 else {
      l1 = Array(repeating: .failure(L1Problem(reason: .noL1Table)), count: count)
      return
    }
    let sector = IOBuffer(count: 512)
    for first in stride(from: 0, to: count, by: 64) {
      let place = HostOffset(offset + UInt64(first) * 8)
      var problem: LossReason?
      do throws(ToolError) { try file.read(into: sector, count: 512, at: place) } catch {
        problem = error.lossReason
      }
      for index in first..<min(first + 64, count) {
        let isInside = offset + UInt64(index) * 8 + 8 <= file.length
        let entry = L1Entry(raw: sector.be64((index - first) * 8))
        l1.append(judged(entry, problem ?? (isInside ? nil : .beyondEnd)))
      }
    }
  }

  private func judged(_ entry: L1Entry, _ problem: LossReason?) -> Result<L1Entry, L1Problem> {
    if let problem { return .failure(L1Problem(reason: problem)) }
    if let fault = entry.faults(geometry, fileLength: file.length).first {
      return .failure(L1Problem(reason: .table(fault)))
    }
    return .success(entry)
  }

  /// Gives the places of lost L2 tables to tables that nothing leads to, in the order of the file.
  private func fillFromScan() {
    var known = Set(l1.compactMap { try? $0.get().l2Table })
    known.insert(HostOffset(head.header.l1TableOffset))
    let orphans = (TableSearch(file).tables([geometry.clusterBits])[geometry.clusterBits] ?? [])
      .filter { !known.contains($0) }
    var next = orphans.makeIterator()
    for index in l1.indices {
      guard case .failure = l1[index], let table = next.next() else { continue }
      l1[index] = .success(L1Entry(l2Table: table, copied: true))
      notes.append(
        "L1 entry \(index) is lost: the table at \(hex(table.bytes)), which nothing leads to, takes its "
          + "place: that is a guess")
    }
  }

  private func table(at offset: HostOffset) -> Table {
    if let known = tables.first(where: { $0.offset == offset }) { return known.table }
    var table = Table(bytes: IOBuffer(count: Int(geometry.clusterSize)))
    do throws(ToolError) {
      try file.read(into: table.bytes, count: table.bytes.count, at: offset)
    } catch {
      for sector in 0..<table.bytes.count / 512 {
        table.lost[sector] = read(table.bytes, sector * 512, at: offset + UInt64(sector * 512))
      }
    }
    for sector in 0..<table.bytes.count / 512
    where offset.bytes + UInt64(sector * 512) >= file.length {
      table.lost[sector] = .beyondEnd
    }
    if tables.count >= Self.cachedTables { tables.removeFirst() }
    tables.append((offset, table))
    return table
  }

  /// Reads one sector; why it cannot be read, if so.
  private func read(_ buffer: IOBuffer, _ start: Int, at offset: HostOffset) -> LossReason? {
    let part = unsafe UnsafeMutableRawBufferPointer(start: buffer.base + start, count: 512)
    do throws(ToolError) { try unsafe file.read(into: part, at: offset) } catch {
      unsafe part.initializeMemory(as: UInt8.self, repeating: 0)
      return error.lossReason
    }
    return nil
  }

  // MARK: Mapping

  /// What the bytes from `offset` on are, and how many are alike: 1 to `length`; inside the disk.
  package func content(at offset: UInt64, length: UInt64) -> (content: Content, length: UInt64) {
    let guest = GuestOffset(offset)
    let index = Int(geometry.l1Index(of: guest))
    let toTableEnd = geometry.bytesPerL2Table - offset % geometry.bytesPerL2Table
    guard index < l1.count else { return (.lost(.noL1Table), length) }
    switch l1[index] {
    case .failure(let problem): return (.lost(problem.reason), min(length, toTableEnd))
    case .success(let entry):
      guard let place = entry.l2Table else { return (.unallocated, min(length, toTableEnd)) }
      let found = content(at: guest, in: table(at: place))
      return (found.content, min(length, found.length))
    }
  }

  private func entry(_ index: Int, in table: Table) -> Result<ClusterEntry, L1Problem> {
    let position = index << geometry.l2EntryBits
    if let reason = table.lost[position / 512] { return .failure(L1Problem(reason: reason)) }
    return .success(
      ClusterEntry(
        L2Entry(raw: table.bytes.be64(position)),
        SubclusterBitmap(raw: rules.isExtended ? table.bytes.be64(position + 8) : 0)))
  }

  private func content(
    at guest: GuestOffset, in table: Table
  ) -> (content: Content, length: UInt64) {
    let inside = guest.bytes & geometry.clusterMask
    let left = geometry.clusterSize - inside
    let entry: ClusterEntry
    switch self.entry(Int(geometry.l2Index(of: guest)), in: table) {
    case .failure(let problem): return (.lost(problem.reason), left)
    case .success(let found): entry = found
    }
    if let problem = rules.problem(entry, at: guest) { return (.lost(.entry(problem)), left) }
    let first = Int(inside >> UInt64(rules.subclusterBits))
    let run = rules.run(entry, from: first)
    let end = UInt64(first + run.count) << UInt64(rules.subclusterBits)
    let length = min(end, geometry.clusterSize) - inside
    switch run.state {
    case .unallocated: return (.unallocated, length)
    case .zero: return (.zero, length)
    case .compressed: return (.compressed, left)
    case .invalid: return (.lost(.entry(.allocatedAndZero)), length)
    case .data: return data(entry, guest, length)
    }
  }

  private func data(
    _ entry: ClusterEntry, _ guest: GuestOffset, _ length: UInt64
  ) -> (content: Content, length: UInt64) {
    guard let cluster = rules.hostCluster(entry) else {
      return (.lost(.entry(.zero)), length)
    }
    if rules.hasDataFile {
      return (dataFile == nil ? .lost(.dataFile) : .data(HostOffset(guest.bytes)), length)
    }
    let host = cluster + (guest.bytes & geometry.clusterMask)
    if cluster.bytes >= file.length { return (.lost(.entry(.beyondEnd)), length) }
    if host.bytes >= file.length { return (.lost(.beyondEnd), length) }
    return (.data(host), min(length, file.length - host.bytes))
  }

  // MARK: Reading

  /// Fills `target` with the bytes of the disk from `offset` on, and notes what is lost.
  ///
  /// - Parameters:
  ///   - target: Whole sectors.
  ///   - offset: A multiple of 512, so that all of `target` is inside the disk.
  /// - Returns: The parts of `target` that the backing file has; they are zeros.
  package func read(into target: UnsafeMutableRawBufferPointer, at offset: UInt64) -> [Range<Int>] {
    var below: [Range<Int>] = []
    var done = 0
    while done < target.count {
      let place = offset + UInt64(done)
      let found = content(at: place, length: UInt64(target.count - done))
      let count = Int(found.length)
      let part = unsafe UnsafeMutableRawBufferPointer(rebasing: target[done..<done + count])
      switch found.content {
      case .zero: unsafe part.initializeMemory(as: UInt8.self, repeating: 0)
      case .unallocated:
        unsafe part.initializeMemory(as: UInt8.self, repeating: 0)
        if let last = below.last, last.upperBound == done {
          below[below.count - 1] = last.lowerBound..<done + count
        } else {
          below.append(done..<done + count)
        }
      case .lost(let reason): unsafe lose(part, place, reason)
      case .compressed: unsafe inflate(into: part, at: place)
      case .data(let host): unsafe readData(into: part, host, place)
      }
      done += count
    }
    return below
  }

  private func lose(_ part: UnsafeMutableRawBufferPointer, _ place: UInt64, _ reason: LossReason) {
    unsafe part.initializeMemory(as: UInt8.self, repeating: 0)
    list.add(place..<place + UInt64(part.count), reason)
  }

  /// Notes that something else could not be read.
  package func noteLoss(_ range: Range<UInt64>, _ reason: LossReason) { list.add(range, reason) }

  /// Reads data; of what the host cannot read, halves, until the sectors are found.
  private func readData(
    into part: UnsafeMutableRawBufferPointer, _ host: HostOffset, _ place: UInt64
  ) {
    let source = rules.hasDataFile ? dataFile ?? file : file
    do throws(ToolError) {
      try unsafe source.read(into: part, at: host)
    } catch {
      guard part.count > 512 else { return unsafe lose(part, place, error.lossReason) }
      let half = max(512, part.count / 1024 * 512)
      unsafe readData(into: UnsafeMutableRawBufferPointer(rebasing: part[..<half]), host, place)
      return unsafe readData(
        into: UnsafeMutableRawBufferPointer(rebasing: part[half...]), host + UInt64(half),
        place + UInt64(half))
    }
    guard let cipher, let base = part.baseAddress else { return }
    // The file may end within a sector.
    let whole = part.count & ~511
    let position = cipher.ivBasis == .guest ? place : host.bytes
    unsafe cipher.decrypt(base, count: whole, firstSector: position >> 9)
  }

  private func inflate(into part: UnsafeMutableRawBufferPointer, at place: UInt64) {
    let guest = GuestOffset(place)
    let index = Int(geometry.l1Index(of: guest))
    guard index < l1.count, case .success(let l1Entry) = l1[index], let l2 = l1Entry.l2Table,
      case .success(let entry) = entry(Int(geometry.l2Index(of: guest)), in: table(at: l2))
    else { return unsafe lose(part, place, .noL1Table) }
    if inflated?.entry != entry.descriptor {
      switch decompress(entry.descriptor) {
      case .success(let bytes): inflated = (entry.descriptor, bytes)
      case .failure(let problem): return unsafe lose(part, place, problem.reason)
      }
    }
    guard let bytes = inflated?.bytes else { return }
    let start = Int(place & geometry.clusterMask)
    unsafe part.copyMemory(
      from: UnsafeRawBufferPointer(start: bytes.base + start, count: part.count))
    withExtendedLifetime(bytes) {}
  }

  private func decompress(_ entry: L2Entry) -> Result<IOBuffer, L1Problem> {
    let place = CompressedDescriptor(entry, geometry)
    guard place.offset.bytes < file.length else {
      return .failure(L1Problem(reason: .entry(.beyondEnd)))
    }
    let source = IOBuffer(count: Int(place.length))
    do throws(ToolError) {
      try file.read(into: source, count: source.count, at: place.offset)
    } catch {
      return .failure(L1Problem(reason: error.lossReason))
    }
    let target = IOBuffer(count: Int(geometry.clusterSize))
    defer {
      withExtendedLifetime(source) {}
      withExtendedLifetime(target) {}
    }
    for codec in codecs {
      do throws(CodecError) {
        try unsafe codec.decompress(
          UnsafeRawBufferPointer(start: source.base, count: source.count),
          into: UnsafeMutableRawBufferPointer(start: target.base, count: target.count))
        return .success(target)
      } catch { continue }
    }
    return .failure(L1Problem(reason: .compressed))
  }
}

extension ToolError {
  /// Why something is lost if this is what reading it ended with.
  fileprivate var lossReason: LossReason {
    if case .host(_, let errno) = self { return .host(errno) }
    return .host(.io)
  }
}
