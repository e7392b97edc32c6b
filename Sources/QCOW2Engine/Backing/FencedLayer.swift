package import BlockCore

/// Stands for a backing file that is not to be read through the image above: another engine writes it,
/// or nobody has opened it.
///
/// What the image does not have itself is ``BlockStatus/Kind/unallocated`` here. To read it is an error,
/// so a job that asks first (``OpenDisk/status(at:length:)``) can never take old data for new.
package final class FencedLayer: BackingLayer {
  package var length: UInt64 { .max }

  /// A fence.
  package init() {}

  /// - Throws: ``ImageError/badRequest``, always.
  package func read(
    into buffer: DataBuffer, at offset: GuestOffset, worker: Int
  ) async throws(ImageError) { throw .badRequest }

  package func plan(
    _ offset: GuestOffset, _ length: UInt64, into plan: inout PlanBuilder
  ) -> UInt64 { 0 }

  package func status(
    at offset: GuestOffset, length: UInt64
  ) async throws(ImageError) -> BlockStatus { BlockStatus(kind: .unallocated, length: length) }
}
