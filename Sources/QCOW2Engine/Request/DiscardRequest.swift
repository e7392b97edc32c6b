import BlockCore
import QCOW2Format

extension Image {
  /// DISCARD: whole subclusters inside the range lose their data; afterwards they read as zeros.
  ///
  /// What else lies in the range is left alone: the ends, parts of compressed clusters, and in an
  /// image of version 2 with a backing file everything, as only data could hide that file.
  func discard(_ request: BlockRequest, worker: Int) async throws(ImageError) {
    guard let range = wholeSubclusters(request) else { return }
    if guestData.isRaw { return try await zeroRaw(range, releases: true) }
    _ = try await changeMapping(range, .discard, worker: worker)
  }

  /// The bytes of the subclusters that lie wholly inside a request; nil if there are none.
  ///
  /// The disk's last subcluster counts as whole if all of its bytes are inside.
  func wholeSubclusters(_ request: BlockRequest) -> Range<UInt64>? {
    let mask = rules.subclusterSize - 1
    let end = request.offset.bytes + request.length
    let first = (request.offset.bytes + mask) & ~mask
    let last = end == size ? end : end & ~mask
    return first < last ? first..<last : nil
  }

  /// Zeroes a range of a raw external data file, which must read like the guest's disk at all
  /// times: the entries stay as they are.
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
