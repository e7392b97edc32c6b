package import BlockCore
package import QCOW2Engine

/// An image under simulation: its file, its model, and the world they live in.
package final class Bench: @unchecked Sendable {  // why: one thread per simulation
  package let host: SimulatedHost
  package let clock = LogicalClock()
  package let memory: MemoryFile
  package let faulty: FaultyFile
  package let recording: RecordingFile
  package let model: DiskModel
  package let builder: ImageBuilder
  /// The bytes before the first write.
  package let original: ImageBytes
  /// For each prefilled guest cluster, the change that its sectors hold at first.
  private let prefilled: [Int: UInt32]
  package var options = ImageOptions()

  /// Builds the image, its mapped data clusters filled with patterns.
  ///
  /// `schedule` is the seed of the order of events; nil for arrival order.
  package init(
    _ builder: ImageBuilder, schedule: UInt64?, traits: HostFileTraits = HostFileTraits(),
    capacity: Int = 1 << 32, isImmediate: Bool = false
  ) {
    var builder = builder
    let model = DiskModel(size: builder.size & ~511, clock: clock)
    let perCluster = (1 << builder.clusterBits) / 512
    var prefilled: [Int: UInt32] = [:]
    for (cluster, mapping) in builder.mappings where mapping == .data {
      let end = min((cluster + 1) * perCluster, model.size / 512)
      prefilled[cluster] = model.prefill((cluster * perCluster)..<end)
    }
    let changes = prefilled
    builder.fill = { cluster, bytes in
      for index in 0..<perCluster {
        SectorPattern.fill(
          bytes + index * 512, change: changes[cluster] ?? 0,
          sector: cluster * perCluster + index)
      }
    }
    let bytes = builder.build(capacity: capacity)
    original = bytes.copy()
    host = SimulatedHost(seed: schedule)
    memory = MemoryFile(bytes, host: isImmediate ? nil : host, traits: traits)
    faulty = FaultyFile(memory)
    recording = RecordingFile(faulty, clock: clock)
    self.prefilled = prefilled
    self.model = model
    self.builder = builder
  }

  package var bytes: ImageBytes { memory.bytes }
  package var file: any HostFile { recording }

  package func open() async throws(ImageError) -> Image {
    try await Image.open(recording, options: options)
  }

  /// Checks the image, and all guest contents against the model, as after a clean close.
  package func problems() -> [String] {
    let verifier = ImageVerifier(bytes)
    let report = verifier.check()
    var problems = report.errors
    if report.leaks > 0 { problems.append("\(report.leaks) leaked clusters") }
    return problems + contentProblems(verifier) + snapshotProblems(verifier)
  }

  /// What the guest contents have that the model does not permit.
  package func contentProblems(_ verifier: ImageVerifier) -> [String] {
    var problems: [String] = []
    let now = clock.tick()
    let zeros = IOBuffer(count: 512)
    for sector in model.touched where problems.count < 3 {
      let found = verifier.sector(sector) ?? UnsafeRawPointer(zeros.base)
      if let problem = model.checkRead(found, sector: sector, started: now, ended: now) {
        problems.append("on disk: " + problem)
      }
    }
    return problems
  }

  /// What has changed in the snapshot, which must never change.
  package func snapshotProblems(_ verifier: ImageVerifier) -> [String] {
    guard builder.hasSnapshot else { return [] }
    let perCluster = (1 << builder.clusterBits) / 512
    for (cluster, change) in prefilled {
      for sector in (cluster * perCluster)..<((cluster + 1) * perCluster) {
        guard let found = verifier.snapshotSector(sector),
          SectorPattern.change(in: found, sector: sector) == change
        else { return ["the snapshot's sector \(sector) has changed"] }
      }
    }
    return []
  }
}
