/// The encryption of `crypt_method` 2: the master key of a LUKS header, opened with a passphrase.
///
/// The sector numbers count the host file's sectors; see ``IVBasis/host``.
///
/// Source: LUKS On-Disk Format Specification 1.2.3; qcow2 specification, "Data encryption".
@safe package final class LUKSCipher: TransformCipher {
  package let header: LUKSPartitionHeader
  let transform: SectorTransform

  init(_ header: LUKSPartitionHeader, masterKey: Secret) throws(LUKSError) {
    self.header = header
    do throws(CipherError) {
      transform = try SectorTransform(header.suite, key: masterKey)
    } catch {
      throw .cipher(error)
    }
  }

  /// Opens the header in `area` with a passphrase, trying all key slots in use.
  ///
  /// Takes as long as the header's iterations ask for, seconds as a rule: not for an I/O thread.
  ///
  /// - Parameters:
  ///   - area: The bytes that the full disk encryption header pointer points at, header and key
  ///     material; no more than ``LUKSPartitionHeader/largestArea`` is ever needed.
  ///   - passphrase: As it was typed, without the end of the line.
  ///   - limits: What the header may ask for.
  /// - Throws: ``LUKSError/wrongPassphrase`` if no slot opens; any other error if the header is
  ///   broken or asks for what is not supported.
  package convenience init(
    unlocking area: UnsafeRawBufferPointer, passphrase: Secret, limits: LUKSLimits = LUKSLimits()
  ) throws(LUKSError) {
    let header = unsafe try LUKSPartitionHeader(parsing: area, limits: limits)
    let slots = header.slots.filter(\.isActive)
    guard !slots.isEmpty else { throw .noActiveSlot }
    for slot in slots {
      let key = unsafe try LUKSKeySlot.open(slot, of: header, in: area, passphrase: passphrase)
      if try header.isDigest(of: key) {
        try self.init(header, masterKey: key)
        return
      }
    }
    throw .wrongPassphrase
  }

  package var ivBasis: IVBasis { .host }
}
