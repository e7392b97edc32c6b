import BlockCore
import QCOW2Codec

/// Where the guest's data lies and how it is ciphered: the one way to data clusters for all paths.
///
/// The sectors that initialisation vectors count are those of the guest's disk or of the host file,
/// as the cipher says: both positions go with every transfer, so no path can mix them up [ENC-2].
struct GuestData: Sendable {
  let storage: ImageStorage
  let cipher: (any SectorCipher)?
  /// Guest data has a file of its own, in which clusters have no refcounts.
  let isExternal: Bool
  /// The external data file is at all times a raw image of the disk.
  let isRaw: Bool

  /// The bytes that are encrypted at once.
  private static let pieceBytes = 256 << 10

  /// Data must be plain memory: it is transformed on the way.
  @inline(__always) var isTransformed: Bool { cipher != nil }

  private func sector(_ host: HostOffset, _ guest: GuestOffset, _ basis: IVBasis) -> UInt64 {
    switch basis {
    case .guest: guest.bytes >> 9
    case .host: host.bytes >> 9
    }
  }

  /// Reads `data` from a data cluster at `host`, which the guest sees at `guest`.
  func read(
    into data: DataBuffer, at host: HostOffset, guest: GuestOffset
  ) async throws(ImageError) {
    if cipher != nil && !data.isMemory { throw .needsMemory }
    try await storage.read(into: data, at: host)
    if let cipher, let memory = unsafe data.memory {
      unsafe cipher.decrypt(
        memory, count: data.count, firstSector: sector(host, guest, cipher.ivBasis))
    }
  }

  /// Writes `data` to a data cluster at `host`, which the guest sees at `guest`.
  func write(
    from data: DataBuffer, at host: HostOffset, guest: GuestOffset
  ) async throws(ImageError) {
    guard let cipher else { return try await storage.write(from: data, at: host) }
    guard let memory = unsafe data.memory else { throw .needsMemory }
    let bounce = IOBuffer(count: min(data.count, Self.pieceBytes))
    defer { withExtendedLifetime(bounce) {} }
    var done = 0
    while done < data.count {
      let count = min(data.count - done, bounce.count)
      let sector = sector(host + UInt64(done), guest + UInt64(done), cipher.ivBasis)
      unsafe cipher.encrypt(
        UnsafeRawPointer(memory + done), into: bounce.base, count: count, firstSector: sector)
      try await storage.write(from: bounce.data.slice(0, count), at: host + UInt64(done))
      done += count
    }
  }
}
