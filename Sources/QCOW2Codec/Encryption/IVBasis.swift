/// What the sector numbers count that an initialisation vector is made from.
public enum IVBasis: Sendable {
  /// 512-byte sectors of the guest's disk: legacy AES.
  case guest
  /// 512-byte sectors of the host file: LUKS.
  case host
}
