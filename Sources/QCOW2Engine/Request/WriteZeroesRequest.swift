import BlockCore
import QCOW2Format

extension Image {
  /// WRITE_ZEROES: whole subclusters by mapping, the ends of the range by data.
  ///
  /// Version 3 sets zero flags. Version 2, which has none, lets clusters go where no backing file
  /// would show; else, or with `keepsAllocation`, it writes zeros as data.
  func zero(_ request: BlockRequest, worker: Int) async throws(ImageError) {
    let all = request.offset.bytes..<(request.offset.bytes + request.length)
    if guestData.isRaw { return try await zeroRaw(all, releases: false) }
    let saysZero =
      header.version >= 3 || backing == nil && !request.keepsAllocation
    guard saysZero, let whole = wholeSubclusters(request) else {
      return try await zeroBytes(all, worker: worker)
    }
    try await zeroBytes(all.lowerBound..<whole.lowerBound, worker: worker)
    try await zeroBytes(whole.upperBound..<all.upperBound, worker: worker)
    let left = try await changeMapping(
      whole, request.keepsAllocation ? .zeroInPlace : .zero, worker: worker)
    for range in left { try await zeroBytes(range, worker: worker) }
  }

  /// Writes zeros as data, except where the guest already reads zeros.
  func zeroBytes(_ range: Range<UInt64>, worker: Int) async throws(ImageError) {
    var next = range.lowerBound
    while next < range.upperBound {
      let extent = try await extent(
        at: GuestOffset(next), length: range.upperBound - next)
      let readsZero =
        switch extent {
        case .zeroes: true
        case .unallocated: backing == nil
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
