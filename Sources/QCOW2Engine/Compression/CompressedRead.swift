import BlockCore
import QCOW2Codec
import QCOW2Format
import Synchronization

/// Bytes of one compressed cluster, from the byte `start` on.
struct CompressedPart {
  let descriptor: CompressedDescriptor
  let start: UInt64
}

extension Reader {
  /// The compressed cluster that all of a READ lies in, if its slice is resident.
  ///
  /// - Returns: nil for whatever the general way has to look at, errors among it.
  func residentCompressed(_ request: BlockRequest) -> CompressedPart? {
    let start = request.offset.bytes & geometry.clusterMask
    guard request.length > 0, request.length <= geometry.clusterSize &- start else { return nil }
    guard let entry = mapping.residentEntry(at: request.offset),
      rules.run(entry, from: 0).state == .compressed
    else { return nil }
    return CompressedPart(
      descriptor: CompressedDescriptor(entry.descriptor, geometry), start: start)
  }

  /// Reads part of a compressed cluster, from the byte `start` on, into plain memory.
  ///
  /// The caller's stamp in ``RequestStamps`` is older than its look at the mapping, so the place cannot
  /// be released while it is read. The compressed bytes are read and inflated outside all locks, once
  /// for all requests of a worker that want the cluster at the same time. Their descriptor may reach
  /// beyond the end of the file, or over other bytes: both are the format's way [COMP-3, COMP-4].
  ///
  /// - Throws: ``ImageError/badCompressedData(at:)`` if they do not inflate to exactly a cluster.
  func readCompressed(
    _ descriptor: CompressedDescriptor, from start: UInt64, into data: DataBuffer,
    worker: Int
  ) async throws(ImageError) {
    guard let target = unsafe data.memory else { throw .needsMemory }
    let context = contexts.context(worker)
    let decompressed = context.decompressed
    while true {
      // Not before the mapping was looked at: see ``DecompressedClusters``.
      YieldPoint.generation.pass()
      let generation = frees.generation.load(ordering: .acquiring)
      if let cluster = decompressed.find(descriptor.offset, generation: generation) {
        unsafe target.copyMemory(from: cluster.base + Int(start), byteCount: data.count)
        return
      }
      // Whoever has waited looks again, and loads the cluster itself if it is not there.
      if await decompressed.waitForLoad(of: descriptor.offset) { continue }
      decompressed.beginLoad(of: descriptor.offset)
      defer { decompressed.endLoad(of: descriptor.offset) }
      return try await load(descriptor, from: start, into: data, context, generation)
    }
  }

  private func load(
    _ descriptor: CompressedDescriptor, from start: UInt64, into data: DataBuffer,
    _ context: WorkerContext, _ generation: UInt64
  ) async throws(ImageError) {
    guard let target = unsafe data.memory else { throw .needsMemory }
    let alignment = UInt64(max(storage.file.traits.offsetAlignment, 512))
    let skipped = descriptor.offset.bytes & (alignment - 1)
    let covered = (skipped + descriptor.length + alignment - 1) & ~(alignment - 1)
    let input = await context.takeInput(Int(covered))
    defer { context.giveInput(input) }
    try await storage.read(
      into: input.data.slice(0, Int(covered)), at: HostOffset(descriptor.offset.bytes - skipped))
    let bytes = unsafe UnsafeRawBufferPointer(
      start: input.base + Int(skipped), count: Int(descriptor.length))
    // No suspension from here on: the context is the worker's.
    if data.count == context.decompressed.clusterSize
      && !context.decompressed.isAwaited(descriptor.offset)
    {
      return try unsafe inflate(
        descriptor, bytes, into: UnsafeMutableRawBufferPointer(start: target, count: data.count),
        context)
    }
    let place = context.decompressed.place()
    try unsafe inflate(
      descriptor, bytes, into: UnsafeMutableRawBufferPointer(start: place.base, count: place.count),
      context)
    context.decompressed.keep(descriptor.offset, generation: generation)
    unsafe target.copyMemory(from: place.base + Int(start), byteCount: data.count)
  }

  private func inflate(
    _ descriptor: CompressedDescriptor, _ input: UnsafeRawBufferPointer,
    into target: UnsafeMutableRawBufferPointer, _ context: WorkerContext
  ) throws(ImageError) {
    do { try unsafe context.codec.decompress(input, into: target) } catch {
      throw .badCompressedData(at: descriptor.offset)
    }
  }
}
