import BlockCore
import Glibc
import QCOW2Codec
import QCOW2Engine
import QCOW2Format
import QCOW2Tools

/// Any bytes as an image: checked, repaired, read and written.
///
/// A trap, a wild access, a hang or too
/// much memory ends the run; so does a write where none may be.
struct FuzzImage {
  let bytes: [UInt8]
  var options = ImageOptions()

  init(_ bytes: [UInt8]) {
    self.bytes = bytes
    options.slotsPerWorker = 2
    options.cacheBytes = 4096
    options.dirtyAgeMilliseconds = 0
  }

  func run() {
    check()
    runBlocking { () async -> Void in
      let answers = await read(bytes)
      await readSnapshots()
      await write()
      await rebuild(answers)
    }
  }

  private func check() {
    let image = MemoryBytes(bytes)
    _ = try? ImageCheck.run(image)
    precondition(image.bytes == bytes, "the check changed the image")
  }

  /// Opens `file` with a backing file, a data file and a cipher, of which an image takes what it
  /// needs.
  func open(
    _ file: SparseFile, data: SparseFile? = nil, readOnly: Bool = false,
    snapshot: SnapshotSelector? = nil
  ) async -> Image? {
    var options = options
    options.readOnly = readOnly
    options.snapshot = snapshot
    let base = SparseFile(Self.pattern, isReadOnly: true)
    let data = data ?? SparseFile(Self.pattern, isReadOnly: readOnly || snapshot != nil)
    let isLegacy = bytes.count > 35 && bytes[35] == 1
    return try? await Image.open(
      ImageSources(
        file: file, dataFile: data,
        backing: RawLayer(base, length: UInt64(Self.pattern.count), fileNumber: 1),
        cipher: ToyCipher(isLegacy ? .guest : .host)),
      options: options)
  }

  private static let pattern = (0..<20_000).map { UInt8(truncatingIfNeeded: $0 / 512 + 1) }

  /// Reads all of an image that is opened read-only; ``SparseFile`` traps on a write.
  private func read(_ bytes: [UInt8]) async -> Exercise.Answers {
    let file = SparseFile(bytes, isReadOnly: true)
    guard let image = await open(file, readOnly: true) else { return [:] }
    let answers = await Exercise(image: image).readAll()
    await readVMState(image)
    try? await image.close()
    return answers
  }

  /// Opens some of the snapshots.
  private func readSnapshots() async {
    let memory = MemoryBytes(bytes)
    guard let head = try? HeaderCluster(reading: memory),
      let list = try? SnapshotList(reading: memory, head)
    else { return }
    for snapshot in list.snapshots.prefix(3) {
      let selector = SnapshotSelector.exact(id: snapshot.id, name: snapshot.name)
      let file = SparseFile(bytes, isReadOnly: true)
      guard let image = await open(file, snapshot: selector) else { continue }
      _ = await Exercise(image: image).readAll()
      await readVMState(image)
    }
  }

  private func readVMState(_ image: Image) async {
    let buffer = IOBuffer(count: 3000)
    defer { withExtendedLifetime(buffer) {} }
    for offset in [0, 100, UInt64.max - 100] {
      try? await image.readVMState(into: buffer.data, at: offset)
    }
  }

  /// Opens the image for writing and asks for a little of everything, then opens it again.
  private func write() async {
    let file = SparseFile(bytes)
    let data = SparseFile(Self.pattern)
    guard let image = await open(file, data: data) else {
      precondition(file.changes == 0 && data.changes == 0, "a refused image was written")
      return
    }
    let exercise = Exercise(image: image)
    for place in exercise.places.prefix(24) { await change(exercise, at: place) }
    await image.maintain()
    _ = await exercise.readAll()
    await changeSize(image)
    await writeVMState(image)
    await image.maintain()
    _ = await exercise.readAll()
    try? await image.close()
    _ = await open(file, data: data)
  }

  private func change(_ exercise: Exercise, at place: UInt64) async {
    let size = exercise.image.size
    let cluster = exercise.image.geometry.clusterSize
    let end = min(place + 3 * cluster / 2 & ~511, place + 65536, size)
    if place >= end { return }
    switch place / Exercise.chunk % 6 {
    case 0, 1: _ = await exercise.write(0x5a, place..<end)
    case 2: _ = await exercise.ask(.discard, place..<min(place + 4 * cluster, size))
    case 3: _ = await exercise.ask(.writeZeroes, place..<min(place + 3 * cluster, size))
    case 4: _ = await exercise.write(0, place..<min(place / cluster * cluster + cluster, size))
    default: _ = await exercise.ask(.writeZeroes, place..<end, keepsAllocation: true)
    }
    if place % 3 == 0 { _ = await exercise.ask(.flush) }
  }

  private func changeSize(_ image: Image) async {
    let old = image.size
    let (more, overflow) = old.addingReportingOverflow(3 * image.geometry.clusterSize + 512)
    for size in [overflow ? UInt64.max : more, old / 2 & ~511, old / 2 + 1, old] {
      try? await image.resize(to: size)
    }
  }

  private func writeVMState(_ image: Image) async {
    let buffer = IOBuffer(count: 3000)
    defer { withExtendedLifetime(buffer) {} }
    for offset in [0, 700, UInt64.max - 100] {
      try? await image.writeVMState(from: buffer.data, at: offset)
    }
    await readVMState(image)
  }

  /// Rebuilds refcounts; the guest must see what it saw before.
  private func rebuild(_ answers: Exercise.Answers) async {
    for mode in [RepairMode.leaks, .all] {
      let repaired = MemoryBytes(bytes)
      _ = try? RefcountRebuild.repair(repaired, mode)
    }
    let image = MemoryBytes(bytes)
    do {
      _ = try RefcountRebuild.run(image)
    } catch {
      if case .notOnlyRefcounts = error {
        precondition(image.bytes == bytes, "an image was changed whose repair was refused")
      }
      return
    }
    if answers.isEmpty { return }
    let after = await read(image.bytes)
    precondition(after == answers, "the rebuild changed what the guest sees")
  }
}
