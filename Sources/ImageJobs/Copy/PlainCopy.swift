import BlockCore
import CPlatform
import DiskImages
import Glibc
import HostFiles
import Serving
import Synchronization

/// Copies plain clusters from file to file by copy_file_range(2): the bytes do not come here.
///
/// Of each unit only the first bytes are read. A unit that begins with zeros may be zeros as a whole, so
/// it is left to the copy through memory, as is everything that must be decompressed, decrypted or
/// encrypted, or whose place in a file is not known at once. File systems that can share storage do.
/// Used by all threads of a copy.
final class PlainCopy: Sendable {
  /// A part of a range, and where its bytes lie.
  struct Place: Sendable {
    let descriptor: Int32
    let offset: UInt64
    /// In the range.
    let start: UInt64
    var length: UInt64
  }

  /// Smaller units take longer to look at than to read, unless the copy itself costs nothing.
  private static let leastUnit: UInt64 = 32768
  /// Of a unit that is looked at: one system call costs as much for them as for one byte.
  private static let probeBytes = 256

  private let copy: DiskCopy
  /// The host has refused once: everything is copied through memory from then on.
  private let isRefused = Atomic(false)

  /// Nil where a copy has nothing that could go past memory.
  init?(_ copy: DiskCopy) {
    let policy = copy.policy
    guard policy.sparse == 0 || policy.unit >= Self.leastUnit || Self.canShare(copy.target) else {
      return nil
    }
    guard !policy.compresses, !policy.salvages, Self.isPlain(copy.target),
      copy.sources.allSatisfy({ Self.isPlain($0.disk) })
    else { return nil }
    self.copy = copy
  }

  private static func canShare(_ disk: any OpenDisk) -> Bool {
    disk.files.allSatisfy { qublk_can_share($0.descriptor) != 0 }
  }

  private static func isPlain(_ disk: any OpenDisk) -> Bool {
    !disk.isEncrypted && !disk.files.isEmpty
      && disk.files.allSatisfy { !$0.isDirect && !$0.traits.isBlockDevice }
  }

  var isPossible: Bool { !isRefused.load(ordering: .relaxed) }

  // MARK: Where the bytes are

  /// Where a part of a source lies in its files, by the plan of a read.
  ///
  /// - Parameters:
  ///   - requests: Those of the source.
  ///   - files: The files of the source.
  ///   - range: Whole sectors of the source.
  ///   - slot: The task.
  /// - Returns: All of the range, in its order; nil if the plan does not say it all.
  func places(
    _ requests: FileRequests, _ files: [RingHostFile], _ range: Range<UInt64>, slot: Int
  ) async -> [Place]? {
    let found = Mutex<[Place]>([])
    let request = BlockRequest(
      .read, offset: GuestOffset(range.lowerBound), length: UInt64(range.count))
    let errno = await requests.perform(request, slot: slot) { (transfer, file) in
      let place = Place(
        descriptor: files[Int(transfer.file)].descriptor, offset: transfer.hostOffset.bytes,
        start: UInt64(transfer.dataOffset), length: UInt64(transfer.length))
      found.withLock { $0.append(place) }
      return Int32(bitPattern: transfer.length)
    }
    guard errno == nil else { return nil }
    let places = found.withLock { $0 }.sorted { $0.start < $1.start }
    var end: UInt64 = 0
    for place in places {
      guard place.start == end else { return nil }
      end += place.length
    }
    return end == UInt64(range.count) ? places : nil
  }

  /// Divides a range into what is data for certain and what has to be looked at as a whole.
  ///
  /// - Parameters:
  ///   - places: All of the range.
  ///   - position: Of the range, in the target; units count from the target's start.
  ///   - unit: In bytes; 0 if zeros are data, too.
  /// - Returns: The runs in their order; what is to be looked at is called zeros.
  func runs(_ places: [Place], at position: UInt64, unit: UInt64) -> [ZeroScan.Run] {
    let end = places.last.map { $0.start + $0.length } ?? 0
    if unit == 0 { return [ZeroScan.Run(range: 0..<Int(end), isZero: false)] }
    var runs: [ZeroScan.Run] = []
    var start: UInt64 = 0
    var index = 0
    while start < end {
      while places[index].start + places[index].length <= start { index += 1 }
      let next = min(end, ((position + start) | (unit - 1)) + 1 - position)
      let isZero = !beginsWithData(places[index], at: start, upTo: next)
      let range = Int(start)..<Int(next)
      if let last = runs.last, last.isZero == isZero {
        runs[runs.count - 1].range = last.range.lowerBound..<range.upperBound
      } else {
        runs.append(ZeroScan.Run(range: range, isZero: isZero))
      }
      start = next
    }
    return runs
  }

  private func beginsWithData(_ place: Place, at start: UInt64, upTo end: UInt64) -> Bool {
    let inside = start - place.start
    let count = min(UInt64(Self.probeBytes), end - start, place.length - inside)
    return unsafe withUnsafeTemporaryAllocation(
      byteCount: Self.probeBytes, alignment: 16
    ) { bytes in
      let read = unsafe pread(
        place.descriptor, bytes.baseAddress, Int(count), off_t(place.offset + inside))
      return unsafe read > 0 && !UnsafeRawBufferPointer(rebasing: bytes[..<read]).isAllZeros
    }
  }

  // MARK: Moving

  /// Has the host begin to read what will be copied, where that takes time.
  func prefetch(_ places: [Place]) {
    for place in places {
      posix_fadvise(
        place.descriptor, off_t(place.offset), off_t(place.length), POSIX_FADV_WILLNEED)
    }
  }

  /// Writes a run of a range to the target.
  ///
  /// - Parameters:
  ///   - range: The run, in bytes of the range that `places` are of.
  ///   - places: Where the range lies.
  ///   - offset: The place of the run in the target.
  ///   - requests: Those of the target.
  ///   - slot: The task.
  ///   - buffer: For what the host does not copy.
  /// - Returns: false if the target does not have all of it.
  func move(
    _ range: Range<Int>, of places: [Place], to offset: UInt64, _ requests: FileRequests,
    slot: Int, _ buffer: IOBuffer
  ) async -> Bool {
    let files = copy.target.files
    let request = BlockRequest(.write, offset: GuestOffset(offset), length: UInt64(range.count))
    let errno = await requests.perform(request, slot: slot) { [self] (transfer, file) in
      let start = UInt64(range.lowerBound) + UInt64(transfer.dataOffset)
      var done: UInt64 = 0
      while done < transfer.length {
        guard let place = places.last(where: { $0.start <= start + done }) else { break }
        let inside = start + done - place.start
        let count = min(UInt64(transfer.length) - done, place.length - inside)
        let copied = await copyPart(
          place, inside, count, files[Int(transfer.file)], transfer.hostOffset + done, buffer)
        if copied < 0 { return done > 0 ? Int32(done) : copied }
        if copied == 0 { break }
        done += UInt64(copied)
      }
      return done > 0 ? Int32(done) : -Errno.io.code
    }
    return errno == nil
  }

  /// Copies as many bytes as the host does at once; through memory where it refuses.
  private func copyPart(
    _ place: Place, _ inside: UInt64, _ count: UInt64, _ target: RingHostFile,
    _ offset: HostOffset, _ buffer: IOBuffer
  ) async -> Int32 {
    let from = place.offset + inside
    while isPossible {
      let copied = qublk_copy_range(
        place.descriptor, from, target.descriptor, offset.bytes, count)
      if copied == -Int64(EINTR) { continue }
      if copied > 0 { return Int32(copied) }
      // Nothing copied: the source ends here, and reads as zeros from here on.
      if copied < 0 {
        if Errno(Int32(-copied)).isNoSpace { return Int32(copied) }
        isRefused.store(true, ordering: .relaxed)
      }
      break
    }
    return await copyThroughMemory(place.descriptor, from, count, target, offset, buffer)
  }

  private func copyThroughMemory(
    _ descriptor: Int32, _ from: UInt64, _ count: UInt64, _ target: RingHostFile,
    _ offset: HostOffset, _ buffer: IOBuffer
  ) async -> Int32 {
    let count = min(Int(count), buffer.count)
    let read = unsafe pread(descriptor, buffer.base, count, off_t(from))
    guard read >= 0 else { return -errno }
    if read < count {
      unsafe (buffer.base + read).initializeMemory(
        as: UInt8.self, repeating: 0, count: count - read)
    }
    do throws(Errno) {
      try await target.write(from: buffer.data.slice(0, count), at: offset)
    } catch { return -error.code }
    return Int32(count)
  }
}
