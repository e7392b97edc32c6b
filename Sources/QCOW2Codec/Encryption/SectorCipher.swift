/// Encrypts and decrypts whole 512-byte sectors, each with an initialisation vector of its own.
///
/// May be called from any number of threads at once; never allocates, never waits.
public protocol SectorCipher: AnyObject, Sendable {
  /// What the sector numbers count.
  var ivBasis: IVBasis { get }

  /// Encrypts `count` bytes, a multiple of 512, from `source` into `target`, which do not overlap.
  func encrypt(
    _ source: UnsafeRawPointer, into target: UnsafeMutableRawPointer, count: Int,
    firstSector: UInt64)

  /// Decrypts `count` bytes, a multiple of 512, in place.
  func decrypt(_ bytes: UnsafeMutableRawPointer, count: Int, firstSector: UInt64)
}
