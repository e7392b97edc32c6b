/// What a host cluster is used for.
package enum HostUse: UInt8, Sendable, Equatable {
  case nothing = 0
  case header, refcountTable, refcountBlock, l1Table, l2Table, guestData
  case snapshotTable, encryptionHeader, bitmapDirectory, bitmapTable, bitmapData
  /// Several uses that exclude each other, reported already.
  case conflict

  /// Several tables may refer to one cluster of this use: refcounts above 1 are for these.
  var isShared: Bool { self == .guestData || self == .l2Table }

  package var text: String {
    switch self {
    case .nothing: "nothing"
    case .header: "header"
    case .refcountTable: "refcount table"
    case .refcountBlock: "refcount block"
    case .l1Table: "L1 table"
    case .l2Table: "L2 table"
    case .guestData: "guest data"
    case .snapshotTable: "snapshot table"
    case .encryptionHeader: "encryption header"
    case .bitmapDirectory: "bitmap directory"
    case .bitmapTable: "bitmap table"
    case .bitmapData: "bitmap data"
    case .conflict: "several things"
    }
  }
}
