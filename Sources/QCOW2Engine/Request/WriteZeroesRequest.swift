import BlockCore
import QCOW2Format

extension Image {
  /// WRITE_ZEROES: whole clusters by mapping, the ends of the range by data.
  ///
  /// Version 3 sets the zero flag; version 2, which has none, lets clusters go (without a backing
  /// file, unallocated reads as zeros). With `keepsAllocation`, clusters stay allocated.
  func zero(_ request: BlockRequest, worker: Int) async throws(ImageError) {
    let end = request.offset.bytes + request.length
    guard let whole = wholeClusters(request) else {
      return try await zeroBytes(request.offset.bytes..<end, worker: worker)
    }
    let first = geometry.start(ofGuestCluster: whole.lowerBound).bytes
    let last = min(geometry.start(ofGuestCluster: whole.upperBound).bytes, end)
    try await zeroBytes(request.offset.bytes..<first, worker: worker)
    try await zeroBytes(last..<end, worker: worker)
    if !request.keepsAllocation {
      try await changeClusters(whole, worker: worker, zeroedAndReleased)
    } else if header.hasZeroFlag {
      try await changeClusters(whole, worker: worker, zeroedAndKept)
    } else {
      try await zeroBytes(first..<last, worker: worker)
    }
  }

  private func zeroedAndReleased(_ entry: L2Entry) -> L2Entry {
    switch entry.kind(hasZeroFlag: header.hasZeroFlag) {
    case .unallocated: entry
    case .zero: entry.hostCluster == nil ? entry : .zero
    case .data: header.hasZeroFlag ? .zero : .unallocated
    case .compressed: .zero
    }
  }

  private func zeroedAndKept(_ entry: L2Entry) -> L2Entry {
    switch entry.kind(hasZeroFlag: header.hasZeroFlag) {
    case .unallocated, .zero: entry
    case .data: entry.isCopied ? entry.zeroed : .zero
    case .compressed: .zero
    }
  }

  /// Writes zeros as data, except where the guest already reads zeros.
  private func zeroBytes(_ range: Range<UInt64>, worker: Int) async throws(ImageError) {
    var next = range.lowerBound
    while next < range.upperBound {
      let extent = try await extent(
        at: GuestOffset(next), length: range.upperBound - next)
      let count = min(extent.length, UInt64(zeroes.count))
      if case .data = extent {
        let request = BlockRequest(
          .write, offset: GuestOffset(next), length: count,
          data: zeroes.data.slice(0, Int(count)))
        try await write(request, worker: worker)
        next += count
      } else {
        next += extent.length
      }
    }
  }
}
