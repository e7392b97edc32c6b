package import BlockCore
package import QCOW2Engine

/// An image under simulation: its file, its model, and the world they live in.
package final class Bench: @unchecked Sendable {  // why: one thread per simulation
  package let host: SimulatedHost
  package let clock = LogicalClock()
  package let memory: MemoryFile
  package let faulty: FaultyFile
  package let recording: RecordingFile
  /// The external data file, if there is one.
  package let dataMemory: MemoryFile?
  private let dataFaulty: FaultyFile?
  private let dataRecording: RecordingFile?
  private let backing: BackingBench?
  package let model: DiskModel
  package let builder: ImageBuilder
  /// The bytes before the first write.
  package let original: ImageBytes
  /// Of the image and the data file.
  package let originals: [ImageBytes]
  /// For each prefilled guest cluster, the change that its sectors hold at first.
  private let prefilled: [Int: UInt32]
  package var options = ImageOptions()

  /// Builds the image, its mapped data clusters filled with patterns.
  ///
  /// `schedule` is the seed of the order of events; nil for arrival order. `room` is the number of
  /// bytes of a block device behind the image, none of them zero.
  package init(
    _ builder: ImageBuilder, schedule: UInt64?, traits: HostFileTraits = HostFileTraits(),
    room: Int = 0, capacity: Int = 1 << 32, isImmediate: Bool = false
  ) {
    var builder = builder
    let model = DiskModel(size: builder.size & ~511, clock: clock)
    let perCluster = (1 << builder.clusterBits) / 512
    var prefilled: [Int: UInt32] = [:]
    let host = SimulatedHost(seed: schedule)
    let features = builder.features
    backing = features.backing.map { kind in
      BackingBench(
        kind, features, size: builder.size, change: model.prefill(0..<0),
        host: isImmediate ? nil : host)
    }
    if let backing {
      model.initial = { backing.change(of: $0) }
      model.cutSector = backing.cutSector
    }
    for (cluster, mapping) in builder.mappings {
      let number = Self.prefill(mapping, cluster * perCluster, perCluster, model)
      if let number { prefilled[cluster] = number }
    }
    let changes = prefilled
    builder.fill = { cluster, bytes in
      for index in 0..<perCluster {
        SectorPattern.fill(
          bytes + index * 512, change: changes[cluster] ?? 0,
          sector: cluster * perCluster + index)
      }
    }
    let (bytes, data) = builder.buildFiles(capacity: capacity)
    if room > 0 { bytes.fill(0xee, count: room, at: (bytes.length + 511) & ~511) }
    original = bytes.copy()
    originals = [original] + (data.map { [$0.copy()] } ?? [])
    self.host = host
    memory = MemoryFile(bytes, host: isImmediate ? nil : host, traits: traits)
    faulty = FaultyFile(memory)
    let log = HostLog(clock: clock)
    recording = RecordingFile(faulty, log: log)
    let dataMemory = data.map { MemoryFile($0, host: isImmediate ? nil : host, traits: traits) }
    // A regular data file: what a power cut leaves of a hole is zeros or what there was.
    dataMemory?.punchesToZeros = !traits.isBlockDevice
    let dataFaulty = dataMemory.map { FaultyFile($0) }
    dataRecording = dataFaulty.map { RecordingFile($0, log: log, number: 1) }
    self.dataMemory = dataMemory
    self.dataFaulty = dataFaulty
    self.prefilled = prefilled
    self.model = model
    self.builder = builder
  }

  /// Notes what the sectors of a mapped cluster hold; the change of its data, if it has any.
  private static func prefill(
    _ mapping: ImageBuilder.Mapping, _ first: Int, _ count: Int, _ model: DiskModel
  ) -> UInt32? {
    let all = first..<min(first + count, model.size / 512)
    switch mapping {
    case .data, .compressed: return model.prefill(all)
    case .zero, .allocatedZero:
      model.setInitial(all, 0)
      return nil
    case .subclusters(let allocated, let zero, _):
      let number = model.prefill(0..<0)
      for sector in all {
        let bit = UInt32((sector - first) * 32 / count)
        if allocated >> bit & 1 != 0 { model.setInitial(sector..<(sector + 1), number) }
        if zero >> bit & 1 != 0 { model.setInitial(sector..<(sector + 1), 0) }
      }
      return number
    }
  }

  package var bytes: ImageBytes { memory.bytes }
  package var file: any HostFile { recording }

  /// What host transfers number: the image, the data file, then the backing files.
  package var files: [any HostFile] {
    var files: [any HostFile] = [recording, dataRecording ?? recording]
    for file in backing?.faulty ?? [] { files.append(file) }
    return files
  }

  /// The layers that make operations fail, by file: the image, the data file, the backing files.
  package var faultyFiles: [FaultyFile] {
    [faulty] + (dataFaulty.map { [$0] } ?? []) + (backing?.faulty ?? [])
  }

  package func open() async throws(ImageError) -> Image {
    try await open(files, options: options)
  }

  /// Opens the image over `files`, in the order of ``files``.
  package func open(
    _ files: [any HostFile], options: ImageOptions
  ) async throws(ImageError) -> Image {
    var sources = ImageSources(
      file: files[0], cipher: builder.features.cipher.map { ToyCipher($0) })
    if builder.features.dataFile != nil {
      sources.dataFile = files[1]
      sources.fileNumber = 1
    }
    sources.backing = try await backing?.open(Array(files[2...]), number: 2, options: options)
    return try await Image.open(sources, options: options)
  }

  /// Files in memory, without a simulation, of given contents of image and data file.
  package func immediateFiles(
    _ contents: [ImageBytes], yields: Bool = false
  ) -> [any HostFile] {
    let own = contents.enumerated().map { number, bytes in
      let file = MemoryFile(bytes, traits: number == 0 ? memory.traits : HostFileTraits())
      file.clears = memory.clears
      return file
    }
    let all =
      [own[0], own.count > 1 ? own[1] : own[0]]
      + (backing?.contents ?? []).map { MemoryFile($0) }
    for file in all { file.yields = yields }
    return all
  }

  /// A checker of the image and the data file as they are, or of other contents of them.
  package func verifier(_ contents: [ImageBytes]? = nil) -> ImageVerifier {
    let contents = contents ?? [bytes] + (dataMemory.map { [$0.bytes] } ?? [])
    let backing = backing
    return ImageVerifier(
      contents[0], data: contents.count > 1 ? contents[1] : nil,
      cipher: builder.features.cipher.map { ToyCipher($0) },
      backing: backing.map { backing in { backing.fill($0, $1) } })
  }

  /// Checks the image, and all guest contents against the model, as after a clean close.
  package func problems() -> [String] {
    let verifier = verifier()
    let report = verifier.check()
    var problems = report.errors
    if report.leaks > 0 { problems.append("\(report.leaks) leaked clusters") }
    problems += backing?.problems ?? []
    return problems + contentProblems(verifier) + rawProblems() + snapshotProblems(verifier)
  }

  /// What a raw data file has that the guest's disk has not.
  private func rawProblems() -> [String] {
    guard builder.features.dataFile == .raw, builder.features.cipher == nil,
      let data = dataMemory?.bytes
    else { return [] }
    let now = clock.tick()
    for sector in model.touched {
      let found = UnsafeRawPointer(data.base + sector * 512)
      if let problem = model.checkRead(found, sector: sector, started: now, ended: now) {
        return ["in the raw data file: " + problem]
      }
    }
    return []
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
      if case .subclusters = builder.mappings[cluster] { continue }
      for sector in (cluster * perCluster)..<((cluster + 1) * perCluster) {
        guard let found = verifier.snapshotSector(sector),
          SectorPattern.change(in: found, sector: sector) == change
        else { return ["the snapshot's sector \(sector) has changed"] }
      }
    }
    return []
  }
}
