import BlockCore
import QCOW2Codec
import QCOW2Format
import Synchronization

extension Image {
  /// Reads part of a compressed cluster, from the byte `start` on, into plain memory.
  ///
  /// The caller's stamp in ``RequestStamps`` is older than its look at the mapping, so the place cannot
  /// be released while it is read. The compressed bytes are read and inflated outside all locks. Their descriptor may reach beyond
  /// the end of the file, or over other bytes: both are the format's way [COMP-3, COMP-4].
  ///
  /// - Throws: ``ImageError/badCompressedData(at:)`` if they do not inflate to exactly a cluster.
  func readCompressed(
    _ descriptor: CompressedDescriptor, from start: UInt64, into data: DataBuffer,
    worker: Int
  ) async throws(ImageError) {
    guard let target = unsafe data.memory else { throw .needsMemory }
    let context = contexts.context(worker)
    // Not before the mapping was looked at: see ``DecompressedClusters``.
    let generation = compressedGeneration.load(ordering: .acquiring)
    var cluster = context.decompressed.find(descriptor.offset, generation: generation)
    if cluster == nil {
      let alignment = UInt64(max(storage.file.traits.offsetAlignment, 512))
      let skipped = descriptor.offset.bytes & (alignment - 1)
      let covered = (skipped + descriptor.length + alignment - 1) & ~(alignment - 1)
      let input = IOBuffer(count: Int(covered))
      try await storage.read(into: input, at: HostOffset(descriptor.offset.bytes - skipped))
      // No suspension from here on: the context is the worker's.
      cluster = try unsafe inflate(
        descriptor,
        UnsafeRawBufferPointer(start: input.base + Int(skipped), count: Int(descriptor.length)),
        context, generation)
      withExtendedLifetime(input) {}
    }
    guard let cluster else { return }
    unsafe target.copyMemory(from: cluster.base + Int(start), byteCount: data.count)
  }

  private func inflate(
    _ descriptor: CompressedDescriptor, _ input: UnsafeRawBufferPointer, _ context: WorkerContext,
    _ generation: UInt64
  ) throws(ImageError) -> IOBuffer {
    let place = context.decompressed.place()
    do {
      try unsafe context.codec.decompress(
        input, into: UnsafeMutableRawBufferPointer(start: place.base, count: place.count))
    } catch { throw .badCompressedData(at: descriptor.offset) }
    context.decompressed.keep(descriptor.offset, generation: generation)
    return place
  }
}
