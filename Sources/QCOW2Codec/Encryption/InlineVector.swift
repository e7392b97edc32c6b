/// The 16 bytes of an initialisation vector, as two numbers in the machine's byte order.
struct InlineVector {
  var low: UInt64 = 0
  var high: UInt64 = 0

  /// Makes the vector of a sector.
  @inline(__always) mutating func set(
    _ sector: UInt64, _ generator: IVGenerator, _ set: borrowing ContextSet
  ) {
    high = 0
    switch generator {
    case .plain: low = (sector & 0xffff_ffff).littleEndian
    case .plain64: low = sector.littleEndian
    case .essiv:
      low = sector.littleEndian
      unsafe withBytes { bytes in
        unsafe set.essiv?.run(bytes, into: bytes, count: 16)
      }
    }
  }

  /// Lends the bytes for reading and writing.
  @inline(__always) mutating func withBytes(_ body: (UnsafeMutableRawPointer) -> Void) {
    unsafe withUnsafeMutableBytes(of: &self) { bytes in
      if let base = bytes.baseAddress { unsafe body(base) }
    }
  }

  /// Lends the bytes to libcrypto.
  @inline(__always) mutating func withPointer(_ body: (UnsafePointer<UInt8>) -> Void) {
    unsafe withBytes { unsafe body(UnsafePointer($0.assumingMemoryBound(to: UInt8.self))) }
  }

  /// Multiplies the vector, a polynomial over GF(2), by x modulo x^128 + x^7 + x^2 + x + 1.
  ///
  /// Source: IEEE 1619, 5.2.
  @inline(__always) mutating func double() {
    let (oldLow, oldHigh) = (UInt64(littleEndian: low), UInt64(littleEndian: high))
    let carry: UInt64 = oldHigh >> 63 == 1 ? 0x87 : 0
    low = ((oldLow << 1) ^ carry).littleEndian
    high = ((oldHigh << 1) | (oldLow >> 63)).littleEndian
  }
}
