package import BlockCore
package import QCOW2Format

/// One thing that a check found.
package enum CheckFinding: Equatable, Sendable {
  /// How a finding counts.
  package enum Severity: Equatable, Sendable {
    case corruption, leak, unreadable
    /// Nothing to repair: it is printed, and not counted.
    case remark
  }

  /// A cluster's refcount is not the number of references to it.
  case refcount(cluster: HostOffset, found: UInt64, references: UInt64)
  /// More references than a refcount of this width can count.
  case tooManyReferences(cluster: HostOffset, references: UInt64, largest: UInt64)
  /// The refcounts of a block cannot be read, because the block's offset is impossible.
  case refcountsUnreadable(block: UInt64)
  /// The COPIED flag of an active entry does not say whether the refcount is one.
  case copied(entry: EntryPlace, raw: UInt64, refcount: UInt64)
  /// The COPIED flag of a compressed cluster is set.
  case copiedCompressed(entry: EntryPlace, raw: UInt64)
  case reservedBits(entry: EntryPlace, raw: UInt64)
  case unaligned(use: HostUse, offset: HostOffset, entry: EntryPlace)
  /// The range ends one cluster or more after the end of the file.
  case beyondEnd(use: HostUse, offset: HostOffset, length: UInt64)
  /// A cluster is used in two ways that exclude each other.
  case overlap(cluster: HostOffset, first: HostUse, second: HostUse)
  /// A cluster has guest data and is an L2 table; the refcount can account for both.
  case doubleUse(cluster: HostOffset, first: HostUse, second: HostUse)
  /// A refcount block is referred to by something else as well.
  case refcountBlockShared(index: UInt64, references: UInt64)
  /// A compressed cluster with a subcluster bitmap, which nobody reads: a crash leaves one between two halves
  /// of an entry.
  case compressedBitmap(entry: EntryPlace, raw: UInt64, bitmap: UInt64)
  /// A compressed cluster in an image whose data is in another file.
  case compressedWithDataFile(entry: EntryPlace, raw: UInt64)
  /// Data in another file that does not lie at the guest's offset.
  case dataFileOffset(entry: EntryPlace, found: HostOffset, guest: GuestOffset)
  /// The subcluster bitmap contradicts itself or the entry.
  case subclusters(entry: EntryPlace, raw: UInt64, bitmap: UInt64)
  case snapshotsWithDataFile(count: UInt32)
  case snapshotL1TooLarge(snapshot: Int, entries: UInt32)
  case snapshotIncomplete(snapshot: Int, extraLength: UInt32)
  /// The L1 tables of the snapshots are longer than the file: they overlap, and are not followed.
  case snapshotTablesTooLong(bytes: UInt64)
  /// The bitmaps cannot be read.
  case bitmaps(FormatError)
  /// The autoclear bit promises a bitmaps extension that is not there.
  case bitmapsMissing
  /// The image cannot be opened.
  case unreadable(FormatError)
  /// The image cannot be opened for writing.
  case unwritable(FormatError)
  /// The autoclear bit promises a raw data file, and there is none.
  case rawDataMissing
  /// Two entries of the active L1 table lead to one L2 table: a writer cannot tell whose it is.
  case l2TableTwice(table: HostOffset, references: UInt64)
  /// The encryption header is missing, not wanted or at a wrong place.
  case encryption(EncryptionProblem)
}

/// What is wrong with the encryption header.
package enum EncryptionProblem: Equatable, Sendable {
  case missing
  case notExpected(cryptMethod: UInt32)
  case format(FormatError)
  case noMagic(found: UInt64)
}

/// Where an entry lies.
package enum EntryPlace: Equatable, Sendable {
  case activeL1(index: Int)
  case snapshotL1(snapshot: Int, index: Int)
  case l2(table: HostOffset, index: Int)
  case refcountTable(index: UInt64)
  case bitmapTable(bitmap: Int, index: Int)
  case snapshotTable(index: Int)
}

extension CheckFinding {
  package var severity: Severity {
    switch self {
    case .refcount(_, let found, let references): found > references ? .leak : .corruption
    case .refcountsUnreadable: .unreadable
    case .doubleUse: .remark
    default: .corruption
    }
  }

  /// Made good by refcounts and COPIED flags that say what the tables refer to, or by clearing bits that
  /// nobody reads; nothing else is lost.
  package var isRefcountDamage: Bool {
    switch self {
    case .refcount, .refcountsUnreadable, .copied, .copiedCompressed, .compressedBitmap,
      .refcountBlockShared:
      true
    case .unwritable(let problem): problem.isAboutRefcounts
    case .reservedBits(.refcountTable, _): true
    case .unaligned(.refcountBlock, _, _), .beyondEnd(.refcountBlock, _, _): true
    default: false
    }
  }

  /// Clusters that look leaked may belong to what cannot be followed: they must not be freed.
  ///
  /// Where data of the guest cannot be found, one cluster is lost, and it cannot be told which one.
  /// Where a table cannot be found, or looks like no table, all that it leads to could still be
  /// found by somebody.
  package var hidesReferences: Bool {
    switch self {
    case .refcount, .tooManyReferences, .refcountsUnreadable, .copied, .copiedCompressed,
      .compressedBitmap, .refcountBlockShared, .doubleUse, .dataFileOffset, .snapshotsWithDataFile,
      .snapshotIncomplete, .bitmapsMissing, .rawDataMissing:
      false
    // One of the two entries led to another table.
    case .l2TableTwice: true
    case .unwritable(let problem): !problem.isAboutRefcounts
    case .beyondEnd(let use, _, _):
      use != .guestData && use != .bitmapData && use != .refcountBlock
        && use != .refcountTable
    case .unaligned(let use, _, _): use != .refcountBlock && use != .bitmapData
    case .reservedBits(let entry, _):
      switch entry {
      case .refcountTable, .bitmapTable: false
      default: true
      }
    case .overlap(_, let first, let second): first != .guestData && second != .guestData
    default: true
    }
  }

  /// Why a repair leaves it as it is; after the finding.
  package var whyItStays: String {
    switch self {
    case .refcount(_, let found, let references) where found > references:
      "kept: something that cannot be read may need it"
    case .beyondEnd(.guestData, _, _), .unaligned(.guestData, _, _):
      "not repaired: nothing tells where that part of the disk is"
    case .beyondEnd(.l2Table, _, _), .unaligned(.l2Table, _, _):
      "not repaired: nothing tells where the table is"
    case .overlap: "not repaired: nothing tells which of the two is right"
    case .tooManyReferences: "not repaired: wider refcounts are needed"
    default: "not repaired: that would be a guess"
    }
  }

  /// The finding in words, with the value found and the value expected.
  package var message: String {
    switch self {
    case .refcount(let cluster, let found, let references):
      "host cluster at \(hex(cluster.bytes)): refcount is \(found), expected \(references)"
        + (found > references ? " (leaked)" : "")
    case .tooManyReferences(let cluster, let references, let largest):
      "host cluster at \(hex(cluster.bytes)): \(references) references,"
        + " expected at most \(largest), the largest refcount"
    case .refcountsUnreadable(let block):
      "refcount block \(block): its refcounts cannot be read"
    case .copied(let entry, let raw, let refcount):
      "\(entry.text) is \(hex(raw)): COPIED is \(L2Entry(raw: raw).isCopied ? "set" : "clear"),"
        + " the refcount is \(refcount)"
    case .copiedCompressed(let entry, let raw):
      "\(entry.text) is \(hex(raw)): COPIED is set on a compressed cluster"
    case .reservedBits(let entry, let raw):
      "\(entry.text) is \(hex(raw)): reserved bits are set"
    case .unaligned(let use, let offset, let entry):
      "\(entry.text): \(use.text) at host offset \(hex(offset.bytes)) is not aligned to a cluster"
    case .beyondEnd(let use, let offset, let length):
      "\(use.text) at host offset \(hex(offset.bytes)), \(length) bytes: beyond the end of the file"
    default: otherMessage
    }
  }

  private var otherMessage: String {
    switch self {
    case .overlap(let cluster, let first, let second):
      "host cluster at \(hex(cluster.bytes)): used for \(second.text) and for \(first.text)"
    case .doubleUse(let cluster, let first, let second):
      "host cluster at \(hex(cluster.bytes)): used for \(second.text) and for \(first.text),"
        + " neither of which is changed in place"
    case .refcountBlockShared(let index, let references):
      "refcount block \(index): \(references) references, expected 1"
    case .compressedBitmap(let entry, let raw, let bitmap):
      "\(entry.text) is \(hex(raw)): subcluster bitmap is \(hex(bitmap)), expected 0 for a compressed cluster"
    case .compressedWithDataFile(let entry, let raw):
      "\(entry.text) is \(hex(raw)): compressed, in an image with a data file"
    case .dataFileOffset(let entry, let found, let guest):
      "\(entry.text): data file offset is \(hex(found.bytes)), expected \(hex(guest.bytes))"
    case .subclusters(let entry, let raw, let bitmap):
      "\(entry.text) is \(hex(raw)): subcluster bitmap is \(hex(bitmap)), which it does not allow"
    case .snapshotsWithDataFile(let count):
      "\(count) snapshots, expected none with a data file"
    case .snapshotL1TooLarge(let snapshot, let entries):
      "snapshot \(snapshot): L1 table has \(entries) entries,"
        + " expected at most \(FormatLimit.l1Bytes / 8)"
    case .snapshotIncomplete(let snapshot, let extraLength):
      "snapshot \(snapshot): \(extraLength) bytes of extra data, expected at least 16"
    case .snapshotTablesTooLong(let bytes):
      "the L1 tables of the snapshots have \(bytes) bytes, more than the file"
    case .bitmaps(let error): "bitmaps: \(error.message)"
    case .unreadable(let problem): "\(problem.message): the image cannot be opened"
    case .unwritable(let problem): "\(problem.message): the image cannot be opened for writing"
    case .rawDataMissing: "the raw data file bit is set, expected an external data file"
    case .l2TableTwice(let table, let references):
      "L2 table at \(hex(table.bytes)): \(references) entries of the L1 table lead there, expected 1"
    case .bitmapsMissing: "the bitmaps bit is set, expected a bitmaps extension in the header"
    case .encryption(let problem): problem.text
    default: ""  // all others are in `message`
    }
  }
}

extension EncryptionProblem {
  fileprivate var text: String {
    switch self {
    case .missing: "the encryption header extension is missing, expected with crypt_method 2"
    case .notExpected(let method):
      "encryption header extension with crypt_method \(method), expected 2"
    case .format(let error): error.message
    case .noMagic(let found):
      "encryption header starts with \(hex(found)), expected 0x4c554b53babe (LUKS)"
    }
  }
}

extension EntryPlace {
  package var text: String {
    switch self {
    case .activeL1(let index): "L1 entry \(index)"
    case .snapshotL1(let snapshot, let index): "snapshot \(snapshot), L1 entry \(index)"
    case .l2(let table, let index): "L2 table at \(hex(table.bytes)), entry \(index)"
    case .refcountTable(let index): "refcount table entry \(index)"
    case .bitmapTable(let bitmap, let index): "bitmap \(bitmap), table entry \(index)"
    case .snapshotTable(let index): "snapshot \(index)"
    }
  }
}

extension FormatError {
  /// Whether it is the refcount table that is wrong, which can be written anew.
  fileprivate var isAboutRefcounts: Bool {
    switch self {
    case .truncated(let name, _, _), .badOffset(let name, _, _), .badField(let name, _, _):
      name == "refcount_table_offset" || name == "refcount_table_clusters"
    default: false
    }
  }
}
