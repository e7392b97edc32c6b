import BlockCore
import DiskImages
import HostFiles
import ImageJobs
import QCOW2Engine
import QCOW2Tools
import TestSupport
import TestTools
import Testing
import Uring

/// Jobs that have no power cut test of their own elsewhere: another size, with places in advance, and a
/// backup that is written back.
@Suite(.enabled(if: hasQEMU, "needs qemu-img")) struct OtherPowerCutTests {
  /// One way to change an image.
  enum Change: String, CaseIterable, Sendable {
    case shrink, metadata, falloc, full, restore

    /// The sizes that the disk may have at any moment, in bytes.
    var sizes: Set<Int> {
      switch self {
      case .shrink: [260 << 10, 90 << 10]
      case .metadata, .falloc, .full: [260 << 10, 600 << 10]
      case .restore: [260 << 10]
      }
    }

    func run(_ options: DiskImageOptions, delta: String) throws {
      switch self {
      case .shrink:
        try resize(ResizeJob(.exactly(90 << 10), mayShrink: true), options)
      case .metadata: try resize(ResizeJob(.exactly(600 << 10), preallocation: .metadata), options)
      case .falloc: try resize(ResizeJob(.exactly(600 << 10), preallocation: .falloc), options)
      case .full: try resize(ResizeJob(.exactly(600 << 10), preallocation: .full), options)
      case .restore: try restore(options, delta)
      }
    }

    private func resize(_ job: ResizeJob, _ options: DiskImageOptions) throws {
      _ = try OfflineHost.run(job, on: .qcow2, options, JobContext())
    }

    private func restore(_ options: DiskImageOptions, _ delta: String) throws {
      var job = ConvertJob()
      job.targetHasBacking = true
      var (target, source) = (options, DiskImageOptions(path: delta, readOnly: true))
      for number in [0, 1] {
        let path = number == 0 ? \DiskImageOptions.engine.workers : \.engine.slotsPerWorker
        let count = number == 0 ? job.threads : job.tasks
        target[keyPath: path] = count
        source[keyPath: path] = count
      }
      try runBlocking { [job, target, source] () async throws in
        let from = try await DiskImage.open(source)
        let to = try await DiskImage.open(target)
        var failure: (any Error)?
        do { _ = try await job.run(on: ConvertDisks([from], to: to), JobContext()) } catch {
          failure = error
        }
        do { try await to.close() } catch { failure = failure ?? error }
        try await from.close()
        if let failure { throw failure }
      }
    }
  }

  private static let options = [
    "cluster_size=4k", "cluster_size=512,compat=0.10", "cluster_size=16k,extended_l2=on",
    "cluster_size=4k,lazy_refcounts=on",
  ]

  private static func fixture(_ options: String) throws -> ChainFixture {
    let quiet = " > /dev/null"
    return try ChainFixture(
      [ChainFixture.top, "delta.qcow2"],
      [
        "qemu-img create -q -f qcow2 -o \(options) top.qcow2 260k",
        "qemu-io -f qcow2 -c 'write -P 1 0 100k' -c 'write -P 2 150k 90k' top.qcow2" + quiet,
        "qemu-img snapshot -c s top.qcow2",
        "qemu-io -f qcow2 -c 'write -P 3 40k 20k' -c 'write -P 4 200k 50k' top.qcow2" + quiet,
        "qemu-img create -q -f qcow2 delta.qcow2 260k",
        "qemu-io -f qcow2 -c 'write -P 5 10k 64k' -c 'write -z 80k 100k' delta.qcow2" + quiet,
      ])
  }

  /// Whether each byte is as before or as after; what one of both does not have is zeros or the other's.
  ///
  /// The enumerator fills holes with 0xdd. In a regular file they are zeros.
  private static func isBetween(_ found: [UInt8], _ before: [UInt8], _ after: [UInt8]) -> Bool {
    found.indices.allSatisfy { index in
      let (old, new) = (
        index < before.count ? before[index] : 0, index < after.count ? after[index] : 0
      )
      let byte = index >= before.count && found[index] == 0xdd ? 0 : found[index]
      return byte == old || byte == new
    }
  }

  @Test(
    "A power cut leaves the old size or the new one, and bytes of before or after",
    arguments: Change.allCases, options)
  func powerCuts(change: Change, options: String) throws {
    // Version 2 keeps no size in its snapshots: an image with one keeps its size.
    if change != .restore, options.contains("0.10") { return }
    let image = try Self.fixture(options)
    let (before, seed) = (try image.read(), testSeed("power cut \(change)"))
    let original = try image.bytes(ChainFixture.top)
    let log = HostLog(clock: LogicalClock())
    try change.run(
      try image.options(recording: [ChainFixture.top], log), delta: image.path("delta.qcow2"))
    let after = try image.read()
    #expect(after != before)
    let crashes = CrashEnumerator(original: original, events: log.events, seed: seed)
    var failure: String?
    var seen: Set<Int> = []
    crashes.visit(perCut: testSetting("QUBLK_CUTS", default: 1)) { state in
      do {
        let cut = try image.with([(ChainFixture.top, state.bytes)])
        failure = try Self.problem(of: cut, change, before, after, &seen)
      } catch { failure = "\(error)" }
      failure = failure.map { "\(state.description): \($0)" }
      return failure == nil
    }
    #expect(failure == nil, "seed \(seed): \(failure ?? "")")
    #expect(seen == change.sizes)
    #expect(crashes.count > 5)
  }

  private static func problem(
    of image: ChainFixture, _ change: Change, _ before: [UInt8], _ after: [UInt8],
    _ seen: inout Set<Int>
  ) throws -> String? {
    // Lazy refcounts: who opens the image for writing counts anew.
    let opening = DiskImageOptions(path: image.path(ChainFixture.top))
    try runBlocking { () async throws in try await DiskImage.open(opening).close() }
    if let damage = try image.damage(ChainFixture.top) { return damage }
    let found = try image.read()
    seen.insert(found.count)
    if !change.sizes.contains(found.count) { return "the size is \(found.count)" }
    return isBetween(found, before, after) ? nil : "bytes that were never there"
  }

  @Test("A host error at any step leaves a sound image", arguments: Change.allCases)
  func hostErrors(change: Change) throws {
    var number = 0
    while true {
      let image = try Self.fixture("cluster_size=4k")
      let before = try image.read()
      let left = FailingFile.Counter(number)
      var options = DiskImageOptions(path: image.path(ChainFixture.top))
      options.keepsEngineFiles = true
      options.engineFile = { FailingFile($0, left) }
      do { try change.run(options, delta: image.path("delta.qcow2")) } catch {
        #expect(left.hasFailed, "\(error)")
      }
      #expect(try image.damage(ChainFixture.top) == nil, "after \(number) changes")
      let found = try image.read()
      #expect(change.sizes.contains(found.count), "after \(number) changes")
      if change != .restore {
        let common = min(found.count, before.count)
        #expect(found.prefix(common) == before.prefix(common), "after \(number) changes")
      }
      if !left.hasFailed { break }
      number += number < 6 ? 1 : 4
    }
    #expect(number > 2)
  }
}
