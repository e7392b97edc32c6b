import BlockCore
import QCOW2Engine
import TestSupport
import Testing

/// What a backing file has beyond the disk over it never shows: neither in the VM state, which
/// begins there, nor through an image in between [COW-4].
@Suite struct BeyondTheDiskTests {
  struct Shape: Sendable, CustomTestStringConvertible {
    var clusterBits: Int
    var isExtended = false
    var backing = ImageFeatures.Backing.longer

    var testDescription: String {
      "\(backing.rawValue), cluster bits \(clusterBits)" + (isExtended ? ", extended" : "")
    }

    /// What one L2 table maps, so that VM state begins at a multiple of it.
    var tableSpan: Int { ((1 << clusterBits) / (isExtended ? 16 : 8)) << clusterBits }

    /// A disk that ends 8 KiB before the VM state begins; the backing file reaches 40 KiB into it.
    func bench(copiesOnRead: Bool) -> Bench {
      var builder = ImageBuilder()
      builder.clusterBits = clusterBits
      builder.size = tableSpan - (8 << 10)
      builder.features.isExtended = isExtended
      builder.features.backing = backing
      let bench = Bench(builder, schedule: nil, isImmediate: true)
      bench.options.copyOnRead = copiesOnRead
      return bench
    }
  }

  static let shapes = [
    Shape(clusterBits: 9), Shape(clusterBits: 12), Shape(clusterBits: 12, backing: .layer),
    Shape(clusterBits: 14, isExtended: true),
  ]

  @Test("VM state that was not written reads as zeros", arguments: shapes, [false, true])
  func vmStateThatWasNotWrittenIsZeros(shape: Shape, copiesOnRead: Bool) throws {
    let bench = shape.bench(copiesOnRead: copiesOnRead)
    try bench.host.run {
      let image = try await bench.open()
      // One byte makes the tables; around it and behind, nothing is written.
      let byte = IOBuffer(count: 1)
      byte.base.storeBytes(of: 0x77, as: UInt8.self)
      for place in [700, 17_000] as [UInt64] {
        try await image.writeVMState(from: byte.data, at: place)
      }
      withExtendedLifetime(byte) {}
      let state = IOBuffer(count: 64 << 10)
      state.base.initializeMemory(as: UInt8.self, repeating: 0xa5, count: state.count)
      try await image.readVMState(into: state.data, at: 0)
      for (index, found) in UnsafeRawBufferPointer(start: state.base, count: state.count)
        .enumerated()
      where found != (index == 700 || index == 17_000 ? 0x77 : 0) {
        Issue.record("byte \(index) of the VM state is \(found)")
        break
      }
      withExtendedLifetime(state) {}
      try await image.close()
    }
    #expect(bench.problems().isEmpty, "\(bench.problems())")
  }

  @Test("A guest's read stops at the end of the disk, on both paths", arguments: shapes)
  func aReadStopsAtTheEnd(shape: Shape) throws {
    let bench = shape.bench(copiesOnRead: false)
    try bench.host.run {
      let image = try await bench.open()
      let size = bench.builder.size
      let buffer = IOBuffer(count: 4096)
      for (offset, isInside) in [
        (size - 4096, true), (size - 512, false), (size, false), (shape.tableSpan, false),
      ] {
        let read = BlockRequest(
          .read, offset: GuestOffset(UInt64(offset)), length: 4096, data: buffer.data)
        let served = await image.serve(read, worker: 0, slot: 0)
        #expect(served == (isInside ? .done : .failed(.invalid)), "offset \(offset)")
        #expect(Self.plan(read, image, bench.files) == isInside, "offset \(offset)")
      }
      withExtendedLifetime(buffer) {}
      try await image.close()
    }
  }

  @Test("Nor does what a base has beyond the image between it and the overlay", arguments: [9, 12])
  func throughAnImageInBetween(clusterBits: Int) throws {
    // The image in between ends inside a cluster, and its base and its overlay are longer.
    let (middleSize, size) = (20 * 4096 + 1536, 40 * 4096)
    let base = ImageBytes()
    base.setLength(size)
    for sector in 0..<(size / 512) {
      SectorPattern.fill(base.base + sector * 512, change: 5, sector: sector)
    }
    func image(_ size: Int, mapping cluster: Int) -> ImageBytes {
      var builder = ImageBuilder()
      builder.clusterBits = clusterBits
      builder.size = size
      builder.features.backing = .equal
      builder.mappings[cluster] = .data
      builder.fill = { cluster, bytes in
        for sector in 0..<((1 << clusterBits) / 512) {
          let number = cluster * (1 << clusterBits) / 512 + sector
          SectorPattern.fill(bytes + sector * 512, change: 6, sector: number)
        }
      }
      return builder.build()
    }
    let files = [image(size, mapping: 0), image(middleSize, mapping: 1), base].map {
      MemoryFile($0)
    }
    let host = SimulatedHost(seed: nil)
    try host.run {
      var readOnly = ImageOptions()
      readOnly.readOnly = true
      var middle = ImageSources(
        file: files[1], backing: RawLayer(files[2], length: UInt64(size), fileNumber: 2))
      middle.fileNumber = 1
      let layer = ImageLayer(try await Image.open(middle, options: readOnly))
      let top = try await Image.open(
        ImageSources(file: files[0], backing: layer), options: ImageOptions())
      let buffer = IOBuffer(count: 512)
      for sector in 0..<(size / 512) {
        let read = BlockRequest(
          .read, offset: GuestOffset(UInt64(sector) * 512), length: 512, data: buffer.data)
        let expected: UInt32 =
          sector * 512 >= middleSize ? 0 : sector * 512 < 2 << clusterBits ? 6 : 5
        #expect(await top.serve(read, worker: 0, slot: 0) == .done)
        #expect(SectorPattern.change(in: buffer.base, sector: sector) == expected, "\(sector)")
        buffer.base.initializeMemory(as: UInt8.self, repeating: 0xa5, count: 512)
        #expect(Self.plan(read, top, files), "sector \(sector) is not planned")
        #expect(SectorPattern.change(in: buffer.base, sector: sector) == expected, "\(sector)")
      }
      withExtendedLifetime(buffer) {}
      try await top.close()
    }
  }

  /// Carries out a read that the hit path plans; false if it does not.
  private static func plan(
    _ read: BlockRequest, _ image: Image, _ files: [any HostFile]
  ) -> Bool {
    withUnsafeTemporaryAllocation(of: HostTransfer.self, capacity: 8) { plan in
      guard
        case .transfers(let count) = image.plan(read, worker: 0, slot: 0, into: plan)
      else { return false }
      defer { _ = image.finish(worker: 0, slot: 0, failed: false) }
      for transfer in plan[..<count] {
        guard let memory = read.data.slice(Int(transfer.dataOffset), Int(transfer.length)).memory
        else { return false }
        memory.initializeMemory(as: UInt8.self, repeating: 0, count: Int(transfer.length))
        if case .file = transfer.kind, let file = files[Int(transfer.file)] as? MemoryFile {
          file.bytes.read(
            into: memory, count: Int(transfer.length), at: Int(transfer.hostOffset.bytes))
        }
      }
      return true
    }
  }
}
