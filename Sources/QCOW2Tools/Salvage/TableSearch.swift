import BlockCore
import QCOW2Format

/// Looks through a file for clusters that could be L1 or L2 tables.
///
/// A table cannot be told from data for sure. Each of its entries must be zero or lead to a cluster inside
/// the file, with no reserved bit, and one entry must say COPIED or be compressed, or have company.
struct TableSearch {
  /// Bytes that are read at once: of the largest cluster.
  private static let chunk = 2 << 20

  private let file: any ImageBytes

  init(_ file: any ImageBytes) { self.file = file }

  /// An L1 table that may be the one of the disk.
  struct Candidate {
    var clusterBits: Int
    var offset: HostOffset
    /// The entries that lead to something like an L2 table.
    var score: Int
  }

  /// The clusters that look like tables, for each cluster size.
  ///
  /// Reads the whole file once; what cannot be read is skipped.
  func tables(_ clusterBits: [Int]) -> [Int: [HostOffset]] {
    var found: [Int: [HostOffset]] = [:]
    let buffer = IOBuffer(unfilled: Self.chunk)
    var offset: UInt64 = 0
    while offset < file.length {
      file.readSectors(into: buffer, at: HostOffset(offset))
      for bits in clusterBits {
        let size = 1 << bits
        for start in stride(from: 0, to: buffer.count, by: size)
        where offset + UInt64(start) < file.length && offset + UInt64(start) > 0 {
          if looksLikeTable(buffer, start, clusterBits: bits) {
            found[bits, default: []].append(HostOffset(offset + UInt64(start)))
          }
        }
      }
      offset += UInt64(Self.chunk)
    }
    return found
  }

  /// The likeliest L1 table, of the likeliest cluster size; nil if nothing looks like one.
  func l1Table(_ clusterBits: [Int]) -> Candidate? {
    var best: Candidate?
    for (bits, tables) in tables(clusterBits).sorted(by: { $0.key < $1.key }) {
      let known = Set(tables)
      for table in tables {
        guard let score = score(table, known, clusterBits: bits) else { continue }
        // A table looks like one with smaller clusters, too, but not with larger ones.
        if score >= best?.score ?? 1 {
          if let best, best.clusterBits == bits, best.score == score { continue }
          best = Candidate(clusterBits: bits, offset: table, score: score)
        }
      }
    }
    return best
  }

  /// How many entries of a table lead to other tables; nil if one leads elsewhere.
  ///
  /// COPIED counts more.
  private func score(_ table: HostOffset, _ known: Set<HostOffset>, clusterBits: Int) -> Int? {
    let buffer = IOBuffer(count: 1 << clusterBits)
    do throws(ToolError) { try file.read(into: buffer, count: buffer.count, at: table) } catch {
      return nil
    }
    var score = 0
    for position in stride(from: 0, to: buffer.count, by: 8) {
      let entry = L1Entry(raw: buffer.be64(position))
      if entry.raw == 0 { continue }
      guard entry.raw & ~(EntryBits.offset | EntryBits.copied) == 0, let target = entry.l2Table,
        target != table, known.contains(target)
      else { return nil }
      score += entry.isCopied ? 2 : 1
    }
    return score == 0 ? nil : score
  }

  private func looksLikeTable(_ buffer: IOBuffer, _ start: Int, clusterBits: Int) -> Bool {
    let mask: UInt64 = (1 << UInt64(clusterBits)) - 1
    var isMarked = false
    for position in stride(from: start, to: start + (1 << clusterBits), by: 8) {
      let raw = buffer.be64(position)
      if raw == 0 || raw == EntryBits.zero { continue }
      if raw & EntryBits.compressed != 0 {
        let geometry = ClusterGeometry(clusterBits: clusterBits, refcountOrder: 4)
        let place = CompressedDescriptor(L2Entry(raw: raw), geometry).offset
        if raw & EntryBits.copied != 0 || place.bytes == 0 || place.bytes >= file.length {
          return false
        }
        isMarked = true
        continue
      }
      let allowed = EntryBits.offset | EntryBits.copied | EntryBits.zero
      let place = raw & EntryBits.offset
      if raw & ~allowed != 0 || place & mask != 0 || place == 0 || place >= file.length {
        return false
      }
      if raw & EntryBits.copied != 0 { isMarked = true }
    }
    return isMarked
  }
}
