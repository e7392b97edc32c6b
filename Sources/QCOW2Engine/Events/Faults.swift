import BlockCore
import QCOW2Format

/// What an open image does when something fails, and tells of its own requests; host I/O is reported
/// by ``ImageStorage``.
final class Faults: Sendable {
  private let health: ImageHealth
  private let headerEditor: HeaderEditor
  private let mapping: Mapping
  private let refcounts: RefcountStore
  private let isReadOnly: Bool
  private let version: UInt32

  init(_ parts: ImageParts, _ mapping: Mapping) {
    health = parts.storage.health
    headerEditor = parts.headerEditor
    self.mapping = mapping
    refcounts = parts.allocator.refcounts
    isReadOnly = parts.options.readOnly
    version = parts.header.version
  }

  private var geometry: ClusterGeometry { mapping.geometry }
  private var tables: L2Tables { mapping.tables }

  /// Acts on a failure.
  ///
  /// Corruption stops all changes and is marked in the header. The administrator hears of corruption and
  /// of a lack of space.
  func report(_ error: ImageError, of request: BlockRequest? = nil) async {
    if error.errno == .noSpace { return noteSpaceLacking(error, request) }
    guard error.isDamage else { return }
    let stops = error.isCorruption && !isReadOnly
    let isFirst = stops && health.noteCorruption()
    noteDamage(error, request, stops: stops)
    if isFirst { try? await headerEditor.markCorrupt() }
  }

  private func noteDamage(_ error: ImageError, _ request: BlockRequest?, stops: Bool) {
    guard let reporter = health.reporter else { return }
    let entry = place(of: error)
    reporter.note(.damaged) { event in
      event.problem = error.message
      event.offset = entry.host
      event.guest = entry.guest ?? request?.guestOffset
      event.consequence =
        stops ? (version >= 3 ? .markedCorrupt : .writingStops) : .requestFails
    }
  }

  /// Where the entry is that an error speaks of, and which guest cluster it maps.
  private func place(of error: ImageError) -> (host: HostOffset?, guest: GuestOffset?) {
    switch error {
    case .format(.badEntry("L1 entry", let index, _, _)):
      return (
        tables.l1.table.offset + index &* 8,
        index < UInt64(tables.l1.count)
          ? GuestOffset(index &* geometry.bytesPerL2Table) : nil
      )
    case .format(.badEntry("refcount table entry", let index, _, _)):
      return (refcounts.table.offset + index &* 8, nil)
    case .format(.badEntry(let name, let cluster, _, _)):
      guard name == "L2 entry of guest cluster" || name == "subcluster bitmap of guest cluster"
      else { return (nil, nil) }
      return placeOfEntry(geometry.start(of: GuestCluster(cluster)))
    case .badCompressedData(let host): return (host, nil)
    case .refcountRange(let cluster), .overlapsMetadata(let cluster):
      return (geometry.start(of: cluster), nil)
    default: return (nil, nil)
    }
  }

  private func placeOfEntry(_ guest: GuestOffset) -> (host: HostOffset?, guest: GuestOffset?) {
    let index = Int(geometry.l1Index(of: guest))
    guard index < tables.l1.count, let table = tables.place(index).table else {
      return (nil, guest)
    }
    return (table + geometry.l2Index(of: guest) << UInt64(geometry.l2EntryBits), guest)
  }

  // MARK: Space

  private func noteSpaceLacking(_ error: ImageError, _ request: BlockRequest?) {
    if isReadOnly { return }
    var cause = error
    var user = request?.operation == .flush ? ImageHealth.SpaceUser.flush : .allocation
    if case .noRoomInPlace(let inner) = error { (cause, user) = (inner, .inPlace) }
    health.noteSpace(lackedBy: user)
    health.reporter?.note(.spaceLacking) { event in
      if case .io(let operation, let offset, let errno) = cause {
        event.operation = operation
        event.offset = offset
        event.errno = errno
      } else {
        event.errno = .noSpace
      }
      event.guest = request?.guestOffset
    }
  }
}

extension BlockRequest {
  /// Where the request is on the guest's disk; nil for a flush, which is nowhere.
  fileprivate var guestOffset: GuestOffset? { operation == .flush ? nil : offset }
}
