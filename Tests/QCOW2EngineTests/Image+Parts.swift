public import BlockCore
import QCOW2Format

@testable import QCOW2Engine

// Short ways to the parts of an image that tests look into.

extension Image {
  var allocator: ClusterAllocator { supply.allocator }
  var arenas: WorkerArenas { supply.arenas }
  var frees: DeferredFrees { supply.frees }
  var metadata: MetadataMap { supply.metadata }
  var flusher: FlushCoordinator { durability.flusher }
  var slices: SliceGeometry { mapping.slices }
  var tables: L2Tables { mapping.tables }
  var inFlight: InFlightRanges { mapping.inFlight }
  var l2: SliceCache { mapping.cache }
}

extension RequestStamps {
  func enter(worker: Int, slot: Int) { enter(at: RequestSlot(worker: worker, number: slot)) }
  func exit(worker: Int, slot: Int) { exit(at: RequestSlot(worker: worker, number: slot)) }
  func index(worker: Int, slot: Int) -> Int {
    index(at: RequestSlot(worker: worker, number: slot))
  }
}

extension GuestCluster: ExpressibleByIntegerLiteral {
  public init(integerLiteral number: UInt64) { self.init(number) }
}
