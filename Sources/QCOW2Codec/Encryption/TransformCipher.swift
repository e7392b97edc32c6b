/// A cipher that is one transform of sectors with one key.
protocol TransformCipher: SectorCipher {
  var transform: SectorTransform { get }
}

extension TransformCipher {
  public func encrypt(
    _ source: UnsafeRawPointer, into target: UnsafeMutableRawPointer, count: Int,
    firstSector: UInt64
  ) {
    unsafe transform.run(.encrypt, source, into: target, count: count, firstSector: firstSector)
  }

  public func decrypt(_ bytes: UnsafeMutableRawPointer, count: Int, firstSector: UInt64) {
    unsafe transform.run(.decrypt, bytes, into: bytes, count: count, firstSector: firstSector)
  }
}
