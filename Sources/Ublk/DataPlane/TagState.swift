import BlockCore

/// Who has a tag, and what its request needs.
///
/// What is left to do for the request is the driver's to know (`RequestDriver`); its slot is the tag.
struct TagState {
  /// The owner of the tag's descriptor and buffer.
  enum Phase: UInt8 {
    /// Nobody: not fetched yet, or the driver has given the last fetch back.
    case idle
    /// The driver, until the fetch completes.
    case fetching
    /// The worker: a request has come and not ended.
    case serving
  }

  var phase = Phase.idle
  /// The registered buffer is missing: data goes through user copy.
  var needsUserCopy = false
  /// What the driver was told last.
  var result: Int32 = 0
}
