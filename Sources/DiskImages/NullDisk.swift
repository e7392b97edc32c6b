package import BlockCore
package import HostFiles
package import QCOW2Engine

/// A disk with nothing behind it, to measure what the driver and the data plane cost by themselves.
///
/// Every request succeeds at once. Writes are forgotten, and a read leaves whatever the pages held:
/// as with the kernel's null_blk, nothing that matters may ever rely on it.
package final class NullDisk: OpenDisk, BlockTarget {
  package let size: UInt64

  /// - Parameter size: The bytes of the disk, a multiple of 512.
  package init(size: UInt64) { self.size = size }

  package var name: String { "null" }
  package var target: any BlockTarget { self }
  package var files: [RingHostFile] { [] }
  package var objects: [HostObject] { [] }
  package var identity: (device: UInt64, inode: UInt64) { (0, 0) }
  package var allocationUnit: UInt64 { 4096 }
  package var isEncrypted: Bool { false }
  package var warnings: [String] {
    ["null: writes are forgotten and reads return nothing defined; for measurements only"]
  }
  package func maintain() async {}

  package func status(
    at offset: GuestOffset, length: UInt64
  ) async throws(ImageError) -> BlockStatus { BlockStatus(kind: .zero, length: max(length, 1)) }
  package func close() async {}

  package func plan(
    _ request: BlockRequest, at slot: RequestSlot,
    into plan: UnsafeMutableBufferPointer<HostTransfer>
  ) -> PlanResult { .transfers(count: 0) }

  package func finish(at slot: RequestSlot, failed: Bool) -> FinishResult { .done }

  package func serve(_ request: BlockRequest, at slot: RequestSlot) async -> ServiceResult {
    .done
  }
}
