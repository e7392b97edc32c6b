import BlockCore
import QCOW2Format

/// Reads what the disk has, through the mapping, the cipher, compression and the backing chain.
///
/// Changes nothing. Whoever calls has a stamp.
final class Reader: Sendable {
  let mapping: Mapping
  let guestData: GuestData
  let storage: ImageStorage
  /// What shows where this image has nothing.
  let backingSlot: BackingSlot
  let contexts: WorkerContexts
  let frees: DeferredFrees

  init(_ parts: ImageParts, _ mapping: Mapping, _ contexts: WorkerContexts) {
    self.mapping = mapping
    self.contexts = contexts
    guestData = parts.guestData
    storage = parts.storage
    backingSlot = BackingSlot(parts.sources.backing)
    frees = parts.frees
  }

  var geometry: ClusterGeometry { mapping.geometry }
  var rules: EntryRules { mapping.rules }
  var size: UInt64 { mapping.size }
  /// The backing file, for whoever has a stamp or has shut the gate; nil if there is none.
  var backing: (any BackingLayer)? { backingSlot.layer }
  /// There is a backing file; costs one load.
  @inline(__always) var hasBacking: Bool { !backingSlot.isEmpty }
}
