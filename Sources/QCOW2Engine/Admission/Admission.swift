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
  @inline(__always) func admitNow(_ request: BlockRequest, worker: Int, slot: Int) -> Bool {
    stamps.enter(worker: worker, slot: slot)
    if gate.isOpen && inBounds(request) { return true }
    leave(worker: worker, slot: slot)
    return false
  }

  /// The same, waiting while the gate is shut.
  func admit(_ request: BlockRequest, worker: Int, slot: Int) async throws(ImageError) {
    await enter(worker: worker, slot: slot)
    if inBounds(request) { return }
    leave(worker: worker, slot: slot)
    throw .badRequest
  }

  /// Marks something in flight that has no bounds to check, waiting while the gate is shut.
  func enter(worker: Int, slot: Int) async {
    while true {
      stamps.enter(worker: worker, slot: slot)
      if gate.isOpen { return }
      leave(worker: worker, slot: slot)
      await gate.waitUntilOpen()
    }
  }

  /// Ends a request that was admitted.
  @inline(__always) func leave(worker: Int, slot: Int) {
    stamps.exit(worker: worker, slot: slot)
    if !gate.isQuiet { gate.noteExit(stamps.index(worker: worker, slot: slot)) }
  }
}
