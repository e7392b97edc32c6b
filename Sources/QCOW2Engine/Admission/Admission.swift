import BlockCore

/// How requests enter and leave the image; see ``RequestGate``.
extension Image {
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
