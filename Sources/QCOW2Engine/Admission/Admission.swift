import BlockCore

/// How requests enter and leave the image; see ``RequestGate``.
final class Admission: Sendable {
  let stamps: RequestStamps
  let gate = RequestGate()
  private let mapping: Mapping

  init(stamps: RequestStamps, _ mapping: Mapping) {
    self.stamps = stamps
    self.mapping = mapping
  }

  /// Whether the request is made of whole sectors inside the disk.
  @inline(__always) func inBounds(_ request: BlockRequest) -> Bool {
    let size = mapping.size
    return (request.offset.bytes | request.length) & 511 == 0 && request.offset.bytes <= size
      && request.length <= size &- request.offset.bytes
  }

  /// Marks a request in flight, if the image takes requests now and this one lies inside the disk.
  ///
  /// The bounds are checked inside: the size changes only while nobody is in.
  @inline(__always) func admitNow(_ request: BlockRequest, at slot: RequestSlot) -> Bool {
    stamps.enter(at: slot)
    if gate.isOpen && inBounds(request) { return true }
    leave(at: slot)
    return false
  }

  /// The same, waiting while the gate is shut.
  func admit(_ request: BlockRequest, at slot: RequestSlot) async throws(ImageError) {
    // Open as nearly always: no task frame for the wait.
    stamps.enter(at: slot)
    if !gate.isOpen {
      leave(at: slot)
      await enter(at: slot)
    }
    if inBounds(request) { return }
    leave(at: slot)
    throw .badRequest
  }

  /// Marks something in flight that has no bounds to check, waiting while the gate is shut.
  func enter(at slot: RequestSlot) async {
    while true {
      stamps.enter(at: slot)
      if gate.isOpen { return }
      leave(at: slot)
      await gate.waitUntilOpen()
    }
  }

  /// Ends a request that was admitted.
  @inline(__always) func leave(at slot: RequestSlot) {
    stamps.exit(at: slot)
    if !gate.isQuiet { gate.noteExit(stamps.index(at: slot)) }
  }
}
