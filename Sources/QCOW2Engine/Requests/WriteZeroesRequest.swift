import BlockCore
import QCOW2Format

extension Writer {
  /// WRITE_ZEROES: whole subclusters by mapping, the ends of the range by data.
  ///
  /// Version 3 sets zero flags. Version 2, which has none, lets clusters go where no backing file
  /// would show; else, or with `keepsAllocation`, it writes zeros as data.
  func zero(_ request: BlockRequest, worker: Int) async throws(ImageError) {
    let all = request.offset.bytes..<(request.offset.bytes + request.length)
    try await zero(all, request.keepsAllocation ? .zeroInPlace : .zero, worker: worker)
  }

  /// Makes a range read as zeros, whole subclusters by `change`.
  ///
  /// With ``EntryChange/discard``, what has no data and none behind it is left alone.
  func zero(
    _ all: Range<UInt64>, _ change: EntryChange, worker: Int
  ) async throws(ImageError) {
    if guestData.isRaw {
      try await zeroRaw(all, releases: false)
      if !hasBacking { return }
    }
    let saysZero = version >= 3 || !hasBacking && change != .zeroInPlace
    guard saysZero, let whole = wholeSubclusters(all) else {
      return try await zeroParts(all, change, worker: worker)
    }
    try await zeroParts(all.lowerBound..<whole.lowerBound, change, worker: worker)
    try await zeroParts(whole.upperBound..<all.upperBound, change, worker: worker)
    let left = try await changeMakingRoom(whole, change, worker: worker)
    for range in left { try await zeroBytes(range, worker: worker) }
  }

  /// Zeroes a range that covers no subcluster as a whole: part of one, or of two neighbours.
  ///
  /// Where all of a subcluster reads as zeros already, its zero flag says so from now on, and no
  /// cluster is needed. Elsewhere the zeros are written as data.
  private func zeroParts(
    _ range: Range<UInt64>, _ change: EntryChange, worker: Int
  ) async throws(ImageError) {
    if version < 3 { return try await zeroBytes(range, worker: worker) }
    let mask = rules.subclusterSize - 1
    var next = range.lowerBound
    while next < range.upperBound {
      let end = min(range.upperBound, (next | mask) + 1)
      let whole = next & ~mask..<max(min((next | mask) + 1, size), end)
      if try await !markZero(whole, change, worker: worker) {
        try await zeroBytes(next..<end, worker: worker)
      }
      next = end
    }
  }

  /// Sets the zero flag of one subcluster that has no data and reads as zeros.
  ///
  /// Returns false, with nothing changed, if it may read as anything else.
  private func markZero(
    _ subcluster: Range<UInt64>, _ change: EntryChange, worker: Int
  ) async throws(ImageError) -> Bool {
    let start = GuestOffset(subcluster.lowerBound)
    let part = slices.part(from: start, length: UInt64(subcluster.count))
    await inFlight.acquire(part.clusters)
    defer { inFlight.release(part.clusters) }
    switch try await mapping.extent(at: start, length: part.length) {
    case .zeroes: return true
    case .unallocated where readsZeroBehind(start):
      _ = try await changeHeld(part, change, worker: worker)
      return true
    default: return false
    }
  }

  /// Whether guest bytes from `offset` on that this image does not have read as zeros.
  private func readsZeroBehind(_ offset: GuestOffset) -> Bool {
    backing.map { $0.length <= offset.bytes } ?? true
  }

  /// Writes zeros as data, except where the guest already reads zeros.
  func zeroBytes(_ range: Range<UInt64>, worker: Int) async throws(ImageError) {
    var next = range.lowerBound
    while next < range.upperBound {
      let extent = try await mapping.extent(
        at: GuestOffset(next), length: range.upperBound - next)
      let readsZero =
        switch extent {
        case .zeroes: true
        case .unallocated: readsZeroBehind(GuestOffset(next))
        case .data, .compressed: false
        }
      let count = readsZero ? extent.length : min(extent.length, UInt64(zeroes.count))
      if !readsZero {
        let request = BlockRequest(
          .write, offset: GuestOffset(next), length: count,
          data: zeroes.data.slice(0, Int(count)))
        try await write(request, worker: worker)
      }
      next += count
    }
  }
}
