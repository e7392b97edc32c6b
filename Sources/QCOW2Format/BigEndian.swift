/// Big-endian loads and stores on raw memory: the byte order of every qcow2 structure.
///
/// Callers have checked the bounds; offsets need no alignment.
extension UnsafeRawPointer {
  @inlinable public func be16(_ offset: Int) -> UInt16 {
    unsafe UInt16(bigEndian: loadUnaligned(fromByteOffset: offset, as: UInt16.self))
  }
  @inlinable public func be32(_ offset: Int) -> UInt32 {
    unsafe UInt32(bigEndian: loadUnaligned(fromByteOffset: offset, as: UInt32.self))
  }
  @inlinable public func be64(_ offset: Int) -> UInt64 {
    unsafe UInt64(bigEndian: loadUnaligned(fromByteOffset: offset, as: UInt64.self))
  }
}

extension UnsafeMutableRawPointer {
  @inlinable public func be64(_ offset: Int) -> UInt64 {
    unsafe UnsafeRawPointer(self).be64(offset)
  }

  @inlinable public func storeBE16(_ value: UInt16, _ offset: Int) {
    unsafe storeBytes(of: value.bigEndian, toByteOffset: offset, as: UInt16.self)
  }
  @inlinable public func storeBE32(_ value: UInt32, _ offset: Int) {
    unsafe storeBytes(of: value.bigEndian, toByteOffset: offset, as: UInt32.self)
  }
  @inlinable public func storeBE64(_ value: UInt64, _ offset: Int) {
    unsafe storeBytes(of: value.bigEndian, toByteOffset: offset, as: UInt64.self)
  }
}
