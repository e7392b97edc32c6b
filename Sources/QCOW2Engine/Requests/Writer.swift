import BlockCore
import QCOW2Format

/// Changes what the disk has: writes, discards and zeroes, in place or into new clusters.
///
/// Whoever calls has a stamp, and the right of way: the gate is open, or shut by the caller.
final class Writer: Sendable {
  let mapping: Mapping
  let supply: ClusterSupply
  let durability: Durability
  let faults: Faults
  let reader: Reader
  let options: ImageOptions
  let version: UInt32
  /// Zeros to write from.
  let zeroes = IOBuffer(count: 64 << 10)

  init(
    _ parts: ImageParts, _ mapping: Mapping, _ supply: ClusterSupply, _ durability: Durability,
    _ faults: Faults, _ reader: Reader
  ) {
    self.mapping = mapping
    self.supply = supply
    self.durability = durability
    self.faults = faults
    self.reader = reader
    options = parts.options
    version = parts.header.version
  }

  var geometry: ClusterGeometry { mapping.geometry }
  var rules: EntryRules { mapping.rules }
  var slices: SliceGeometry { mapping.slices }
  var tables: L2Tables { mapping.tables }
  var inFlight: InFlightRanges { mapping.inFlight }
  var size: UInt64 { mapping.size }
  var frees: DeferredFrees { supply.frees }
  var guestData: GuestData { reader.guestData }
  var storage: ImageStorage { reader.storage }
  var backing: (any BackingLayer)? { reader.backing }
  var hasBacking: Bool { reader.hasBacking }
}
