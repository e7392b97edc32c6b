import BlockCore
import QCOW2Format

/// The bitmap directory as found: entries that lie inside it, not yet checked one by one.
///
/// Source: qcow2 specification, "Bitmap directory".
struct BitmapDirectory {
  struct Item {
    /// Where the entry starts, counted from the start of the directory.
    let position: UInt64
    let entry: BitmapEntry
    let name: String

    /// Every change must show in the bitmap, or nobody may trust it any more.
    var mustBeTracked: Bool { entry.flags.contains(.auto) && !entry.flags.contains(.inUse) }
  }

  let start: HostOffset
  private(set) var items: [Item] = []

  /// The bitmaps extension in the header's cluster, checked; nil if there is not exactly one.
  static func location(
    _ cluster: IOBuffer, _ header: Header
  ) throws(BitmapProblem) -> BitmapsExtension? {
    let first = Int(header.headerLength)
    let end =
      header.backingFileOffset == 0
      ? cluster.count : Int(min(header.backingFileOffset, UInt64(cluster.count)))
    do throws(FormatError) {
      return try cluster.withBytes { bytes throws(FormatError) in
        let found = try HeaderExtension.list(in: bytes, from: first, to: max(end, first))
          .filter { $0.kind == .bitmaps }
        guard found.count == 1, let only = found.first else { return nil }
        let location = try BitmapsExtension(parsing: bytes.extracting(only.bytes))
        try location.validate(header.geometry)
        return location
      }
    } catch { throw .format(error) }
  }

  /// - Parameters:
  ///   - bytes: the whole directory.
  ///   - location: where it lies, checked.
  /// - Throws: if the entries do not fill it, or are not as many as the extension says.
  init(_ bytes: IOBuffer, _ location: BitmapsExtension) throws(BitmapProblem) {
    start = location.directory
    var position: UInt64 = 0
    while position < location.directoryLength {
      let space = location.directoryLength - position
      guard space >= UInt64(BitmapEntry.fixedLength) else { throw Self.tooLong(space) }
      let entry = unsafe BitmapEntry(parsing: bytes.base + Int(position))
      guard entry.length <= space else { throw Self.tooLong(entry.length) }
      items.append(
        Item(position: position, entry: entry, name: Self.name(of: entry, bytes, position)))
      position += entry.length
    }
    guard items.count == Int(location.bitmapCount) else {
      throw .format(
        .badField(
          name: "nb_bitmaps", found: UInt64(location.bitmapCount),
          allowed: "\(items.count), the entries of the directory"))
    }
  }

  private static func name(
    of entry: BitmapEntry, _ bytes: IOBuffer, _ position: UInt64
  ) -> String {
    let start = Int(position + entry.namePosition)
    return unsafe String(
      decoding: UnsafeRawBufferPointer(
        start: bytes.base + start, count: Int(entry.nameLength)), as: UTF8.self)
  }

  private static func tooLong(_ found: UInt64) -> BitmapProblem {
    .format(
      .badField(
        name: "length of a bitmap directory entry", found: found,
        allowed: "what is left of the directory"))
  }
}
