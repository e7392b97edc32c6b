import BlockCore
package import JSON
import QCOW2Engine

/// A range of a disk that is all alike, as ``MapJob`` tells it.
package struct MapRange: JobValue {
  /// In bytes of the disk.
  package var start: UInt64
  /// In bytes.
  package var length: UInt64
  /// Which layer of the chain answers: 0 for the image itself.
  package var depth = 0
  /// A layer has data here, or says that there are zeros.
  package var isPresent: Bool
  /// Reads as zeros.
  package var isZero = false
  /// Has storage for data in the layer's file.
  package var isData: Bool
  package var isCompressed = false
  /// Where it starts in ``file``; nil without such a place.
  package var offset: UInt64?
  /// The name of the file that ``offset`` is of.
  package var file: String?

  /// The image itself has the data, or says that there are zeros; else its backing file is asked.
  package var isAllocated: Bool { depth == 0 && isPresent }

  /// A range of which only this is told.
  package init(start: UInt64, length: UInt64, isAllocated: Bool) {
    self.start = start
    self.length = length
    isPresent = isAllocated
    isData = isAllocated
  }

  /// A range as the disk tells it; `names` are those of files, by depth.
  init(_ status: BlockStatus, start: UInt64, _ names: [String]) {
    self.start = start
    length = status.length
    depth = status.depth
    isPresent = status.kind != .unallocated
    isData = status.kind == .data || status.kind == .compressed
    isZero = !isData || status.isHole
    isCompressed = status.kind == .compressed
    offset = status.host?.bytes
    if offset != nil, depth < names.count { file = names[depth] }
  }

  /// This range and the one behind it in one; nil if they are not alike.
  func joined(with next: MapRange) -> MapRange? {
    guard depth == next.depth, isPresent == next.isPresent, isZero == next.isZero,
      isData == next.isData, isCompressed == next.isCompressed, file == next.file,
      next.offset == offset.map({ $0 &+ length })
    else { return nil }
    var both = self
    both.length += next.length
    return both
  }
}

extension MapRange {
  package var json: JSONValue {
    var members: [JSONValue.Member] = [
      .init("start", .number(start)), .init("length", .number(length)),
      .init("allocated", .bool(isAllocated)), .init("depth", .count(depth)),
      .init("present", .bool(isPresent)), .init("zero", .bool(isZero)),
      .init("data", .bool(isData)), .init("compressed", .bool(isCompressed)),
    ]
    if let offset { members.append(.init("offset", .number(offset))) }
    if let file { members.append(.init("filename", .string(file))) }
    return .object(members)
  }

  package init?(json: JSONValue) {
    guard let start = json["start"]?.unsigned, let length = json["length"]?.unsigned,
      let isAllocated = json["allocated"]?.bool
    else { return nil }
    self.init(start: start, length: length, isAllocated: isAllocated)
    depth = json["depth"]?.unsigned.flatMap { Int(exactly: $0) } ?? depth
    isPresent = json["present"]?.bool ?? isPresent
    isZero = json["zero"]?.bool ?? isZero
    isData = json["data"]?.bool ?? isData
    isCompressed = json["compressed"]?.bool ?? isCompressed
    offset = json["offset"]?.unsigned
    file = json["filename"]?.string
  }
}
