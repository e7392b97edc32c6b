import BlockCore
import QCOW2Engine
import TestSupport
import Testing

/// Damage in a backing file is the backing file's alone.
@Suite struct BrokenBackingTests {
  @Test("The sector that a raw file ends in is read through memory, whatever else is asked for")
  func theLastSectorNeedsMemory() throws {
    let bytes = ImageBytes(capacity: 1 << 20)
    bytes.fill(0xee, count: 1000, at: 0)
    let layer = RawLayer(MemoryFile(bytes), length: 1000)
    try SimulatedHost(seed: nil).run {
      let pages = DataBuffer(registered: 0, offset: 0, count: 1024)
      do throws(ImageError) {
        try await layer.read(into: pages, at: GuestOffset(0), worker: 0)
        Issue.record("part of a sector was read into registered pages")
      } catch {
        guard case .needsMemory = error else { throw error }
      }
      let buffer = IOBuffer(count: 1024)
      try await layer.read(into: buffer.data, at: GuestOffset(0), worker: 0)
      let found = UnsafeRawBufferPointer(start: buffer.base, count: 1024)
      #expect(found[..<1000].allSatisfy { $0 == 0xee } && found[1000...].allSatisfy { $0 == 0 })
    }
  }

  @Test(
    "A broken backing file fails what needs it, and neither marks the image corrupt nor stops writing",
    arguments: [BlockOperation.read, .write], [false, true])
  func onlyWhatNeedsItFails(operation: BlockOperation, copiesOnRead: Bool) throws {
    func built(_ backing: Bool) -> ImageBytes {
      var builder = ImageBuilder()
      builder.clusterBits = 12
      builder.size = 256 << 10
      if backing { builder.features.backing = .equal }
      if !backing { for cluster in 0..<32 { builder.mappings[cluster] = .data } }
      return builder.build()
    }
    let (bytes, base) = (built(true), built(false))
    // The entry of the base's cluster 5 leads to no cluster's start.
    let table = Int(base.be64(Int(base.be64(40))) & 0x00ff_ffff_ffff_fe00)
    base.put64(base.be64(table + 40) | 512, table + 40)
    let host = SimulatedHost(seed: nil)
    try host.run {
      var readOnly = ImageOptions()
      readOnly.readOnly = true
      var sources = ImageSources(file: MemoryFile(base))
      sources.fileNumber = 1
      let layer = ImageLayer(try await Image.open(sources, options: readOnly))
      var options = ImageOptions()
      options.copyOnRead = copiesOnRead
      let image = try await Image.open(
        ImageSources(file: MemoryFile(bytes), backing: layer), options: options)
      let buffer = IOBuffer(count: 512)
      func serve(_ operation: BlockOperation, cluster: Int) async -> Errno? {
        let request = BlockRequest(
          operation, offset: GuestOffset(UInt64(cluster) << 12 + 1024), length: 512,
          data: buffer.data)
        return await image.serve(request, worker: 0, slot: 0).errno
      }
      #expect(await serve(operation, cluster: 5) == .io)
      for cluster in [4, 6, 5] {
        #expect(await serve(.read, cluster: cluster) == (cluster == 5 ? .io : nil))
        #expect(await serve(.write, cluster: cluster) == (cluster == 5 ? .io : nil))
      }
      #expect(await image.serve(BlockRequest(.flush), worker: 0, slot: 0) == .done)
      withExtendedLifetime(buffer) {}
      try await image.close()
    }
    #expect(bytes.be64(72) == 0, "the image is marked corrupt")
    let report = ImageVerifier(bytes).check()
    #expect(report.errors.isEmpty && report.leaks == 0, "\(report)")
  }
}
