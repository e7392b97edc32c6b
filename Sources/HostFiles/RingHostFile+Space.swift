package import BlockCore
import CPlatform
import Glibc
import Synchronization

/// What a host file system refused once and is not asked for again.
enum Refusal {
  static let zeroRange: UInt8 = 1
  static let punchHole: UInt8 = 2
  static let extend: UInt8 = 4
  static let writtenZeroes: UInt8 = 8
  static let reserve: UInt8 = 16
  /// The same without a longer file: NFS 4.2 has no such mode.
  static let holes: UInt8 = 32
}

/// Zeros and holes.
extension RingHostFile {
  /// The source of plain writes of zeros; never written to.
  private static let zeros = IOBuffer(count: 1 << 18)

  /// Makes the range read as zeros, by the first way that the file system does not refuse.
  ///
  /// First ZERO_RANGE, which keeps the space; then a hole, and the file's end moved where the range
  /// goes past it; then plain writes. What is refused is remembered.
  package func writeZeroes(at offset: HostOffset, length: UInt64) async throws(Errno) {
    if length == 0 { return }
    if try await allocate(.zeroRange, QUBLK_FALLOC_ZERO_RANGE, offset.bytes, length) { return }
    if try await zeroByHole(offset.bytes, length) { return }
    try await zeroByWriting(offset.bytes, length)
  }

  package func punchHole(at offset: HostOffset, length: UInt64) async throws(Errno) {
    if length == 0 { return }
    _ = try await allocate(.punchHole, Self.holeMode, offset.bytes, length)
  }

  /// By PUNCH_HOLE, which on a block device is WRITE ZEROES with leave to unmap, and is refused where the
  /// kernel would have to write the zeros.
  ///
  /// Only of a device that takes discards: there it is a change of its maps. Hard disks with WRITE SAME
  /// would take the command, too, and be busy for as long as all the zeros take.
  package func clear(at offset: HostOffset, length: UInt64) async -> Bool {
    if length == 0 || !traits.isBlockDevice || !clearsAtOnce { return false }
    return (try? await allocate(.punchHole, Self.holeMode, offset.bytes, length)) ?? false
  }

  private static let holeMode = QUBLK_FALLOC_PUNCH_HOLE | QUBLK_FALLOC_KEEP_SIZE

  private enum Way {
    case zeroRange, punchHole, extend, writtenZeroes, reserve, holes

    var refusal: UInt8 {
      switch self {
      case .zeroRange: Refusal.zeroRange
      case .punchHole: Refusal.punchHole
      case .extend: Refusal.extend
      case .writtenZeroes: Refusal.writtenZeroes
      case .reserve: Refusal.reserve
      case .holes: Refusal.holes
      }
    }
  }

  /// Tries fallocate(2) in one way; false if the host refuses that way, now or before.
  private func allocate(
    _ way: Way, _ mode: Int, _ offset: UInt64, _ length: UInt64
  ) async throws(Errno) -> Bool {
    if refusals.load(ordering: .relaxed) & way.refusal != 0 { return false }
    var attempts = Attempts()
    while true {
      let result = await rawAllocate(mode: Int32(mode), at: offset, length: length)
      if result >= 0 { return true }
      if Self.isRefusal(Errno(-result)) {
        refusals.bitwiseOr(way.refusal, ordering: .relaxed)
        return false
      }
      try await attempts.retry(after: result)
    }
  }

  /// EOPNOTSUPP, ENOSYS, ENODEV and EINVAL: this file never can.
  private static func isRefusal(_ error: Errno) -> Bool {
    error == .notSupported || error == .invalid || error == .noDevice || error.code == 38
  }

  private func zeroByHole(_ offset: UInt64, _ length: UInt64) async throws(Errno) -> Bool {
    guard try await allocate(.punchHole, Self.holeMode, offset, length) else { return false }
    let end = offset + length
    return try await extendByAllocating(to: end)
  }

  /// Moves the end of a regular file by allocating its last byte, which, unlike ftruncate, can never
  /// move it back; false if the host refuses.
  private func extendByAllocating(to end: UInt64) async throws(Errno) -> Bool {
    if traits.isBlockDevice { return true }
    if try await length() >= end { return true }
    return try await allocate(.extend, 0, end - 1, 1)
  }

  package func extend(to length: UInt64) async throws(Errno) {
    if length == 0 { return }
    if try await extendByAllocating(to: length) { return }
    // Zeros at the end do the same on file systems without fallocate.
    let count = min(UInt64(max(traits.offsetAlignment, 512)), length)
    try await zeroByWriting(length - count, count)
  }

  /// Makes a regular file reach over the range, and allocates it there if the file is written to
  /// directly.
  ///
  /// A direct write into a hole cannot be done without waiting, so the kernel hands it to a thread,
  /// and takes the file's lock for itself. Through the page cache a hole costs nothing of the kind,
  /// and in memory (tmpfs) storage is never prepared.
  ///
  /// - Throws: what keeps the file from reaching so far. A host that refuses storage for another reason
  ///   than want of space only gives none in advance.
  package func reserve(
    at offset: HostOffset, length: UInt64
  ) async throws(Errno) -> Reservation {
    if length == 0 || traits.isBlockDevice { return .stored }
    if isDirect, !isInMemory {
      do throws(Errno) {
        if try await hasReserved(offset.bytes, length) { return .stored }
      } catch {
        if error.isNoSpace {
          // File systems keep what they found before they failed.
          _ = try? await allocate(.punchHole, Self.holeMode, offset.bytes, length)
          return .short
        }
      }
    }
    do { try await extend(to: offset.bytes + length) } catch {
      if error.isNoSpace { return .short }
      throw error
    }
    return .extended
  }

  /// Tries to give the range storage, the file growing as needed; false if the host refuses.
  ///
  /// Best as zeros that a command of the device writes without moving data: then the first write to
  /// a block costs the file system no more than later ones. Only behind the end of the file, where
  /// there is nothing that zeros could take the place of; a plain allocation changes no contents.
  private func hasReserved(_ offset: UInt64, _ length: UInt64) async throws(Errno) -> Bool {
    if try await self.length() <= offset,
      try await allocate(.writtenZeroes, QUBLK_FALLOC_WRITE_ZEROES, offset, length)
    {
      return true
    }
    return try await allocate(.reserve, 0, offset, length)
  }

  /// By ZERO_RANGE, which keeps or takes space; else by plain writes.
  ///
  /// Never by a hole.
  package func allocateZeroes(at offset: HostOffset, length: UInt64) async throws(Errno) {
    if length == 0 { return }
    if try await allocate(.zeroRange, QUBLK_FALLOC_ZERO_RANGE, offset.bytes, length) { return }
    try await zeroByWriting(offset.bytes, length)
  }

  /// By fallocate(2), inside the file in either mode; nothing is to be done on a block device.
  package func allocateHoles(
    at offset: HostOffset, length: UInt64
  ) async throws(Errno) -> Bool {
    if length == 0 || traits.isBlockDevice { return true }
    if try await allocate(.holes, QUBLK_FALLOC_KEEP_SIZE, offset.bytes, length) { return true }
    guard offset.bytes + length <= (try await self.length()) else { return false }
    return try await allocate(.reserve, 0, offset.bytes, length)
  }

  package func fillHoles(at offset: HostOffset, length: UInt64) async throws(Errno) {
    if traits.isBlockDevice { return }
    let unit = UInt64(traits.offsetAlignment)
    let end = min(offset.bytes + length, try await self.length()) / unit * unit
    var next = offset.bytes
    if next < end, !mayTellHoles(next, end) { return try await rewriteZeroes(next, end) }
    while next < end {
      let hole = qublk_next_hole(descriptor, next)
      if hole < 0 || hole >= end { return }
      let data = qublk_next_data(descriptor, UInt64(hole))
      next = data < 0 ? end : min(UInt64(data), end)
      if next <= hole { return }
      try await zeroByWriting(UInt64(hole), next - UInt64(hole))
    }
  }

  package func endOfData(from offset: HostOffset) async -> HostOffset? {
    if traits.isBlockDevice { return nil }
    var end = offset.bytes
    // A reservation that was used from its start has one stretch of data; more than a few are not worth
    // the time.
    for _ in 0..<64 {
      let data = qublk_next_data(descriptor, end)
      if data < 0 { return data == -Int64(ENXIO) ? HostOffset(end) : nil }
      let hole = qublk_next_hole(descriptor, UInt64(data))
      guard hole > end else { return nil }
      end = UInt64(hole)
    }
    return nil
  }

  package func storedBytes() async -> UInt64? {
    var status = stat()
    guard !traits.isBlockDevice, unsafe fstat(descriptor, &status) == 0 else { return nil }
    return UInt64(max(0, status.st_blocks)) &* 512
  }

  package func extent(at offset: HostOffset, length: UInt64) async -> HostExtent {
    let start = offset.bytes
    let (end, overflow) = start.addingReportingOverflow(length)
    guard !traits.isBlockDevice, !overflow, length > 0 else {
      return HostExtent(length: max(length, 1), isHole: false)
    }
    let data = qublk_next_data(descriptor, start)
    // ENXIO: no data from here to the end of the file, nor behind it.
    if data == -Int64(ENXIO) { return HostExtent(length: length, isHole: true) }
    if data < 0 { return HostExtent(length: length, isHole: false) }
    if UInt64(data) > start {
      return HostExtent(length: min(UInt64(data), end) - start, isHole: true)
    }
    let hole = qublk_next_hole(descriptor, start)
    // A writer may have changed it in between.
    guard hole > start else { return HostExtent(length: length, isHole: false) }
    return HostExtent(length: min(UInt64(hole), end) - start, isHole: false)
  }

  /// Whether SEEK_HOLE can be believed; a file system without it says that all is data.
  private func mayTellHoles(_ offset: UInt64, _ end: UInt64) -> Bool {
    let hole = qublk_next_hole(descriptor, offset)
    return hole >= 0 && hole < end
  }

  /// Writes the blocks of a range again that are all zeros, each of which may be a hole.
  func rewriteZeroes(_ start: UInt64, _ end: UInt64) async throws(Errno) {
    let block = max(4096, traits.offsetAlignment)
    let buffer = IOBuffer(count: 16 * block)
    defer { withExtendedLifetime(buffer) {} }
    var next = start
    while next < end {
      let count = Int(min(end - next, UInt64(buffer.count)))
      try await read(into: buffer.data.slice(0, count), at: HostOffset(next))
      for place in stride(from: 0, to: count, by: block) {
        let length = min(block, count - place)
        let isZero = buffer.withBytes { bytes in
          (place..<place + length).allSatisfy { bytes[$0] == 0 }
        }
        if isZero { try await zeroByWriting(next + UInt64(place), UInt64(length)) }
      }
      next += UInt64(count)
    }
  }

  private func zeroByWriting(_ offset: UInt64, _ length: UInt64) async throws(Errno) {
    var done: UInt64 = 0
    while done < length {
      let count = min(length - done, UInt64(Self.zeros.count))
      try await writeWhole(Self.zeros.data.slice(0, Int(count)), offset + done)
      done += count
    }
  }
}
