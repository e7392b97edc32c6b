package import BlockCore
package import QCOW2Engine

/// The backing file of an image under test: a raw file, or a qcow2 image over one.
///
/// Every sector of it holds the pattern of ``change``, or zeros where the qcow2 layer says so.
package final class BackingBench: @unchecked Sendable {  // why: one thread per simulation
  private let kind: ImageFeatures.Backing
  private let change: UInt32
  private let length: Int
  private let layer: ImageBuilder?
  /// The qcow2 layer and the raw file, or the raw file alone.
  ///
  /// Shared by all benches of the same shape, since nobody writes there.
  let contents: [ImageBytes]
  let faulty: [FaultyFile]
  private let memory: [MemoryFile]

  /// - Parameters:
  ///   - kind: What the backing file is.
  ///   - features: Of the overlay.
  ///   - size: Of the overlay's disk in bytes.
  ///   - change: The number of the pattern.
  ///   - host: See ``MemoryFile``.
  init(
    _ kind: ImageFeatures.Backing, _ features: ImageFeatures, size: Int, change: UInt32,
    host: SimulatedHost?
  ) {
    self.kind = kind
    self.change = change
    length = features.backingLength(size)
    let layer = kind == .layer ? Self.layer(size: length, change: change) : nil
    self.layer = layer
    let length = length
    contents = Self.built.contents("\(kind) \(length) \(change)") {
      (layer.map { [$0.build()] } ?? []) + [Self.rawBytes(length, change)]
    }
    let traits = HostFileTraits(isReadOnly: true)
    memory = contents.map { MemoryFile($0, host: host, traits: traits) }
    faulty = memory.map { FaultyFile($0) }
  }

  private static let built = BuiltFiles()

  /// Files built so far in this process, by what they are.
  private final class BuiltFiles: @unchecked Sendable {  // why: `lock` guards `files`
    private let lock = FutexLock(.leaf)
    private var files: [String: [ImageBytes]] = [:]

    func contents(_ name: String, _ build: () -> [ImageBytes]) -> [ImageBytes] {
      if let found = lock.withLock({ files[name] }) { return found }
      let new = build()
      return lock.withLock {
        let kept = files[name] ?? new
        files[name] = kept
        return kept
      }
    }
  }

  private static func rawBytes(_ length: Int, _ change: UInt32) -> ImageBytes {
    let bytes = ImageBytes()
    bytes.setLength((length + 511) / 512 * 512)
    for sector in 0..<((length + 511) / 512) {
      SectorPattern.fill(bytes.base + sector * 512, change: change, sector: sector)
    }
    bytes.setLength(length)
    return bytes
  }

  private static func layer(size: Int, change: UInt32) -> ImageBuilder {
    var builder = ImageBuilder()
    builder.clusterBits = 12
    builder.size = size
    builder.features.backing = .equal
    let kinds: [ImageBuilder.Mapping?] = [.compressed, .data, nil, .zero, .compressed, nil, .data]
    for cluster in 0..<(size / 4096) {
      builder.mappings[cluster] = kinds[cluster % kinds.count]
    }
    builder.fill = { cluster, bytes in
      for sector in 0..<8 {
        SectorPattern.fill(bytes + sector * 512, change: change, sector: cluster * 8 + sector)
      }
    }
    return builder
  }

  /// The change that a sector holds.
  func change(of sector: Int) -> UInt32 {
    if sector * 512 >= length { return 0 }
    if let layer, case .zero = layer.mappings[sector / 8] { return 0 }
    return change
  }

  /// The sector that the file ends in, and how many of its bytes are inside.
  var cutSector: (sector: Int, count: Int)? {
    length % 512 == 0 ? nil : (length / 512, length % 512)
  }

  /// Fills 512 bytes with what a sector of the overlay reads.
  func fill(_ sector: Int, _ target: UnsafeMutableRawPointer) {
    SectorPattern.fill(target, change: change(of: sector), sector: sector)
    if let cutSector, cutSector.sector == sector {
      (target + cutSector.count).initializeMemory(
        as: UInt8.self, repeating: 0, count: 512 - cutSector.count)
    }
  }

  /// Opens the layer over `files`; host transfers call them `number` and the numbers after it.
  package func open(
    _ files: [any HostFile], number: UInt8, options: ImageOptions
  ) async throws(ImageError) -> any BackingLayer {
    guard kind == .layer else {
      return RawLayer(files[0], length: UInt64(length), fileNumber: number)
    }
    let base = RawLayer(files[1], length: UInt64(length), fileNumber: number + 1)
    var sources = ImageSources(file: files[0], backing: base)
    sources.fileNumber = number
    var layerOptions = options
    layerOptions.readOnly = true
    return ImageLayer(try await Image.open(sources, options: layerOptions))
  }

  /// What was tried to do to files that must never be written.
  var problems: [String] { memory.flatMap(\.violations).map { "backing file: " + $0 } }
}
