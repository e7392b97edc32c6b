import BlockCore
import QCOW2Format

/// The extents of the start of a READ, which are read at once; bounded, whatever the request's length.
struct ReadBatch: Sendable {
  struct Piece: Sendable {
    var extent: Extent
    let guest: GuestOffset
    /// Where the piece's data lies, counted from the start of the batch.
    let dataOffset: Int
  }

  /// The most host transfers of one request that are in flight at a time.
  static let capacity = 32

  let start: GuestOffset
  private(set) var pieces: [Piece] = []
  /// The bytes of all pieces.
  private(set) var length: UInt64 = 0

  init(start: GuestOffset) { self.start = start }

  /// Adds the extent behind the last one, or joins the two.
  ///
  /// - Returns: false when there is no room; nothing is added then.
  mutating func add(_ extent: Extent) -> Bool {
    if let joined = pieces.last.flatMap({ $0.extent.joined(with: extent) }) {
      pieces[pieces.count - 1].extent = joined
    } else {
      if pieces.count == Self.capacity { return false }
      pieces.append(Piece(extent: extent, guest: start + length, dataOffset: Int(length)))
    }
    length += extent.length
    return true
  }

  /// Whether tasks made here run on the caller's own thread, as all that a worker does must.
  ///
  /// Without an executor of its own the caller runs on some thread of the pool, and so would they,
  /// on others at the same time.
  static var mayRunTasks: Bool {
    unsafe withUnsafeCurrentTask { unsafe $0?.unownedTaskExecutor } != nil
  }
}

extension Extent {
  /// One extent for two neighbours of the guest that one host transfer can serve; else nil.
  fileprivate func joined(with next: Extent) -> Extent? {
    switch (self, next) {
    case (.zeroes(let length), .zeroes(let more)): .zeroes(length: length + more)
    case (.unallocated(let length), .unallocated(let more)): .unallocated(length: length + more)
    case (.data(let host, let length), .data(let other, let more)) where host + length == other:
      .data(host, length: length + more)
    default: nil
    }
  }
}
