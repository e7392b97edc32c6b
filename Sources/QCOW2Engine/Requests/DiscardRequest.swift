import BlockCore
import QCOW2Format

extension Writer {
  /// DISCARD: whole subclusters inside the range lose their data; afterwards they read as zeros.
  ///
  /// What else lies in the range is left alone: the ends, parts of compressed clusters, and in an
  /// image of version 2 with a backing file everything, as only data could hide that file.
  func discard(_ request: BlockRequest, worker: Int) async throws(ImageError) {
    let all = request.offset.bytes..<(request.offset.bytes + request.length)
    guard let range = wholeSubclusters(all) else { return }
    if guestData.isRaw {
      try await zeroRaw(range, releases: true)
      if !hasBacking { return }
    }
    _ = try await changeMakingRoom(range, .discard, worker: worker)
  }

  /// The bytes of the subclusters that lie wholly inside a range; nil if there are none.
  ///
  /// The disk's last subcluster counts as whole if all of its bytes are inside.
  func wholeSubclusters(_ range: Range<UInt64>) -> Range<UInt64>? {
    let mask = rules.subclusterSize - 1
    let end = range.upperBound
    let first = (range.lowerBound + mask) & ~mask
    let last = end == size ? end : end & ~mask
    return first < last ? first..<last : nil
  }

  /// Zeroes a range of a raw external data file, which must read like the guest's disk at all
  /// times.
  ///
  /// The entries stay as they are: mapped or not, the guest reads the data file or zeros. Only over a
  /// backing file, which no image of QEMU's making has, must the caller change the entries as well.
  ///
  /// With `releases`, the space may be given back instead: a hint.
  func zeroRaw(_ range: Range<UInt64>, releases: Bool) async throws(ImageError) {
    var next = range.lowerBound
    while next < range.upperBound {
      let part = slices.part(from: GuestOffset(next), length: range.upperBound - next)
      await inFlight.acquire(part.clusters)
      defer { inFlight.release(part.clusters) }
      let offset = HostOffset(next)
      if releases {
        await guestData.storage.punchHole(at: offset, length: part.length)
      } else {
        try await guestData.storage.writeZeroes(at: offset, length: part.length)
      }
      next += part.length
    }
  }
}
