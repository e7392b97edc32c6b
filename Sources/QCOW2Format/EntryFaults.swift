public import BlockCore

/// What is wrong with an entry of a table: the one judgement of engine, check and repair.
public struct EntryFaults: OptionSet, Sendable {
  public let rawValue: UInt8
  @inlinable public init(rawValue: UInt8) { self.rawValue = rawValue }
  /// Bits that must be zero are not.
  @inlinable public static var reservedBits: Self { Self(rawValue: 1 << 0) }
  /// What it leads to does not start at a cluster.
  @inlinable public static var unaligned: Self { Self(rawValue: 1 << 1) }
  /// What it leads to starts behind the end of the file.
  @inlinable public static var beyondEnd: Self { Self(rawValue: 1 << 2) }

  /// - Parameters:
  ///   - reserved: The bits that must be zero, as they are.
  ///   - place: Where the entry leads, in bytes; 0 if nowhere.
  ///   - geometry: The image's.
  ///   - fileLength: Of the file that the place is in.
  @inlinable init(
    reserved: UInt64, place: UInt64, _ geometry: ClusterGeometry, fileLength: UInt64
  ) {
    self = reserved == 0 ? [] : .reservedBits
    if place == 0 { return }
    if place & geometry.clusterMask != 0 { insert(.unaligned) }
    if place >= fileLength { insert(.beyondEnd) }
  }

  /// The first of them, for a message; nil if there is none.
  public var first: OffsetProblem? {
    contains(.reservedBits)
      ? .reservedBits : contains(.unaligned) ? .unaligned : contains(.beyondEnd) ? .beyondEnd : nil
  }
}

/// Where an entry of the L1 table leads: the one judgement of it while a disk is served.
public enum L2TablePlace: Equatable, Sendable {
  /// There is no table: all that it would map is unallocated.
  case missing
  /// A table; `isOwn` if nobody shares it, so that it may be changed where it is (COPIED).
  case at(HostOffset, isOwn: Bool)
  /// The entry breaks the format, or the file is too short for it.
  case unusable

  /// The table; nil if there is none that can be used.
  @inlinable @inline(__always) public var table: HostOffset? {
    if case .at(let table, _) = self { return table }
    return nil
  }
}

extension L1Entry {
  /// What is wrong with the entry; `fileLength` is that of the file, where it is of matter.
  @inlinable public func faults(
    _ geometry: ClusterGeometry, fileLength: UInt64 = .max
  ) -> EntryFaults {
    EntryFaults(
      reserved: raw & ~(EntryBits.offset | EntryBits.copied), place: raw & EntryBits.offset,
      geometry, fileLength: fileLength)
  }

  /// Where the entry leads; ``L2TablePlace/unusable`` if ``faults(_:fileLength:)`` has any.
  @inlinable @inline(__always) public func place(_ geometry: ClusterGeometry) -> L2TablePlace {
    let place = raw & ~EntryBits.copied
    if place & geometry.bitsBesideOffset != 0 { return .unusable }
    return place == 0 ? .missing : .at(HostOffset(place), isOwn: isCopied)
  }

  /// Whether the L2 table starts behind the end of a file.
  public func leadsBeyond(_ fileLength: UInt64) -> Bool {
    raw & EntryBits.offset >= fileLength
  }

  /// Why the entry cannot be used, marks of ``unusable`` included; nil if it can, or leads nowhere.
  public func problem(_ geometry: ClusterGeometry) -> OffsetProblem? {
    if let before = beforeUnusable { return before.raw == 0 ? .missing : .beyondEnd }
    return faults(geometry).first
  }
}

extension RefcountTableEntry {
  /// What is wrong with the entry; `fileLength` is that of the file, where it is of matter.
  @inlinable public func faults(
    _ geometry: ClusterGeometry, fileLength: UInt64 = .max
  ) -> EntryFaults {
    EntryFaults(
      reserved: raw & EntryBits.refcountReserved, place: raw & ~EntryBits.refcountReserved,
      geometry, fileLength: fileLength)
  }
}

extension BitmapTableEntry {
  /// What is wrong with the entry; `fileLength` is that of the file, where it is of matter.
  public func faults(_ geometry: ClusterGeometry, fileLength: UInt64 = .max) -> EntryFaults {
    // All bits are ones, or they are in a cluster, but not both.
    let allowed = EntryBits.offset | (cluster == nil ? 1 : 0)
    return EntryFaults(
      reserved: raw & ~allowed, place: raw & EntryBits.offset, geometry, fileLength: fileLength)
  }
}

extension EntryRules {
  /// The bits that a standard cluster descriptor may have.
  @inlinable public var descriptorBits: UInt64 {
    EntryBits.offset | EntryBits.copied | (hasZeroFlag ? EntryBits.zero : 0)
  }

  /// What is wrong with a standard cluster descriptor; nothing ever with a compressed one.
  ///
  /// Stricter than ``problem(_:at:)``: readers ignore reserved bits and the end of the file, as QEMU
  /// does.
  @inlinable public func faults(_ entry: L2Entry, fileLength: UInt64 = .max) -> EntryFaults {
    if entry.raw & EntryBits.compressed != 0 { return [] }
    // An external data file has no end that matters.
    return EntryFaults(
      reserved: entry.raw & ~descriptorBits, place: entry.raw & EntryBits.offset, geometry,
      fileLength: hasDataFile ? .max : fileLength)
  }

  /// Whether an entry has a subcluster bitmap that nobody reads: the format wants zeros there.
  public func isUnread(_ bitmap: SubclusterBitmap, of entry: L2Entry) -> Bool {
    isExtended && !hasDataFile && entry.raw & EntryBits.compressed != 0 && bitmap.raw != 0
  }

  /// Whether a host cluster may have the data of the guest cluster that `guest` lies in.
  ///
  /// In an external data file that is the one at the guest's own offset alone. QEMU, too, calls an
  /// image corrupt where it reads anything else.
  @inlinable @inline(__always) public func isPlaced(
    _ host: HostOffset, _ guest: GuestOffset
  ) -> Bool {
    hasDataFile
      ? host.bytes == guest.bytes & ~geometry.clusterMask
      : host.bytes & geometry.clusterMask == 0
  }

  /// Why the entry of the guest cluster that `guest` lies in cannot be used, all of its subclusters
  /// included; nil if it can.
  public func problem(_ entry: ClusterEntry, at guest: GuestOffset) -> OffsetProblem? {
    let isCompressed = entry.descriptor.raw & EntryBits.compressed != 0
    if isExtended && entry.bitmap.isInvalid && (!isCompressed || hasDataFile) {
      return .allocatedAndZero
    }
    if isCompressed { return hasDataFile ? .compressedWithDataFile : nil }
    guard let host = hostCluster(entry) else {
      return isExtended && entry.bitmap.allocated != 0 ? .zero : nil
    }
    if isPlaced(host, guest) { return nil }
    return host.bytes & geometry.clusterMask != 0 ? .unaligned : .notAtGuestOffset
  }
}
