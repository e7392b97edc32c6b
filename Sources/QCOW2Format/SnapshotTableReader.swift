import BlockCore

/// A snapshot with its texts.
public struct Snapshot: Equatable, Sendable {
  public let entry: SnapshotEntry
  public let id: String
  public let name: String

  public init(entry: SnapshotEntry, id: String, name: String) {
    self.entry = entry
    self.id = id
    self.name = name
  }
}

/// Walks the snapshot table; its limits are QEMU's.
///
/// Does no I/O: while ``wanted`` is not nil, the caller reads those bytes and gives them to
/// ``take(_:)``. Each entry takes two such steps, so the work is bounded by the number of entries.
///
/// Source: qcow2 specification, "Snapshots".
public struct SnapshotTableReader {
  /// Bytes of the table.
  public struct Part: Equatable, Sendable {
    /// Counted from the start of the table; below ``SnapshotEntry/mostTableLength``, plus one
    /// entry.
    public let position: UInt64
    /// At most 2^17.
    public let count: Int
  }

  public private(set) var snapshots: [Snapshot] = []
  /// The bytes from the start of the first to the end of the last entry read so far.
  public private(set) var length: UInt64 = 0
  private let count: UInt32
  private let mostExtraLength: UInt32
  /// The entry whose texts come next.
  private var current: SnapshotEntry?

  /// - Parameters:
  ///   - count: The number of entries, at most ``FormatLimit/snapshots``.
  ///   - mostExtraLength: The most extra data that an entry may have. Repair passes more than the
  ///     format's limit, to shorten what is too long.
  public init(count: UInt32, mostExtraLength: UInt32 = SnapshotEntry.mostExtraLength) {
    self.count = count
    self.mostExtraLength = mostExtraLength
  }

  private var start: UInt64 { (length + 7) & ~7 }

  /// What must be read next; nil when the walk has ended.
  public var wanted: Part? {
    if let current {
      return Part(
        position: start + current.idPosition, count: current.textLength)
    }
    if UInt64(snapshots.count) >= UInt64(count) { return nil }
    return Part(
      position: start, count: SnapshotEntry.fixedLength + SnapshotEntry.knownExtraLength)
  }

  /// Takes the bytes that were wanted; those beyond the end of the file as zeros.
  ///
  /// - Throws: ``FormatError/badField(name:found:allowed:)`` where a limit is exceeded.
  public mutating func take(_ bytes: Span<UInt8>) throws(FormatError) {
    guard let wanted, bytes.count >= wanted.count else {
      throw .truncated(
        structure: "snapshot table", needed: UInt64(wanted?.count ?? 0),
        available: UInt64(bytes.count))
    }
    if let entry = current { try finish(entry, bytes) } else { current = try entry(bytes) }
  }

  private func entry(_ bytes: Span<UInt8>) throws(FormatError) -> SnapshotEntry {
    let entry = SnapshotEntry(parsing: bytes)
    guard entry.extraLength <= mostExtraLength else {
      throw .badField(
        name: "extra_data_size of a snapshot", found: UInt64(entry.extraLength),
        allowed: "at most \(SnapshotEntry.mostExtraLength)")
    }
    return entry
  }

  private mutating func finish(
    _ entry: SnapshotEntry, _ texts: Span<UInt8>
  ) throws(FormatError) {
    let end = start + entry.length
    guard end <= SnapshotEntry.mostTableLength else {
      throw .badField(
        name: "length of the snapshot table", found: end,
        allowed: "at most \(SnapshotEntry.mostTableLength)")
    }
    let idLength = Int(entry.idLength)
    snapshots.append(
      Snapshot(
        entry: entry, id: texts.text(0..<idLength), name: texts.text(idLength..<entry.textLength)))
    length = end
    current = nil
  }
}
