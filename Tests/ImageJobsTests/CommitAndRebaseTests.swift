import BlockCore
import DiskImages
import HostFiles
import ImageJobs
import QCOW2Engine
import TestSupport
import TestTools
import Testing

/// Whenever a commit or a rebase ends, the image reads as before, and each file is sound.
@Suite(.enabled(if: hasQEMU, "needs qemu-img")) struct CommitAndRebaseTests {
  private static let base = "base.qcow2"

  /// An overlay with data, zeros, compressed clusters and an end behind that of its base.
  private static func commitChain(_ options: String, _ baseOptions: String) throws -> ChainFixture {
    try ChainFixture(
      [ChainFixture.top, base],
      [
        "qemu-img create -q -f qcow2 -o \(baseOptions) base.qcow2 192k",
        "qemu-io -f qcow2 -c 'write -P 1 0 100k' -c 'write -P 2 150k 20k' base.qcow2",
        "qemu-img snapshot -c s base.qcow2",
        "qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 -o \(options) top.qcow2 260k",
        "qemu-io -f qcow2 -d unmap -c 'write -P 3 10k 20k' -c 'write -z 60k 16k' "
          + "-c 'write -P 4 140k 4k' -c 'write -P 5 200k 30k' -c 'write -z -u 150k 8k' top.qcow2",
      ].map { $0.hasPrefix("qemu-io") ? $0 + " > /dev/null" : $0 })
  }

  private static let shapes = [
    ("cluster_size=4k", "cluster_size=4k"), ("cluster_size=512", "cluster_size=16k"),
    ("cluster_size=16k,extended_l2=on", "cluster_size=512"),
    ("cluster_size=4k,compat=0.10", "cluster_size=16k,extended_l2=on"),
  ]

  private func commit(_ options: DiskImageOptions) throws(JobError) {
    try OfflineHost.run(CommitJob(empties: true), into: .next, options, JobContext())
  }

  @Test("A power cut during a commit leaves what the image reads", arguments: shapes)
  func powerCutsDuringACommit(top: String, base: String) throws {
    let chain = try Self.commitChain(top, base)
    let (expected, seed) = (try chain.read(), testSeed("commit power cut"))
    let names = [ChainFixture.top, Self.base]
    let originals = try names.map(chain.bytes)
    let log = HostLog(clock: LogicalClock())
    try commit(try chain.options(recording: names, log))
    #expect(try chain.read() == expected)
    let crashes = CrashEnumerator(originals: originals, events: log.events, seed: seed)
    var failure: String?
    crashes.visit(perCut: testSetting("QUBLK_CUTS", default: 1)) { state in
      do {
        let cut = try chain.with(Array(zip(names, state.files)))
        failure = try names.compactMap(cut.damage).first
        if failure == nil, try cut.read() != expected { failure = "reads otherwise" }
        if failure == nil, crashes.count % 16 == 0 { failure = try resume(cut, expected) }
      } catch { failure = "\(error)" }
      failure = failure.map { "\(state.description): \($0)" }
      return failure == nil
    }
    #expect(failure == nil, "seed \(seed): \(failure ?? "")")
    #expect(crashes.count > 40)
  }

  /// Commits once more what was cut.
  private func resume(_ chain: ChainFixture, _ expected: [UInt8]) throws -> String? {
    try commit(DiskImageOptions(path: chain.path(ChainFixture.top)))
    if try chain.read() != expected { return "after another commit it reads otherwise" }
    if let damage = try chain.names.compactMap(chain.damage).first { return damage }
    let map = try mustRun("qemu-img", "map", "--output=json", chain.path(ChainFixture.top))
    return map.contains("\"depth\": 0, \"present\": true") ? "not empty: \(map)" : nil
  }

  @Test("A host error in any step of a commit leaves what the image reads")
  func hostErrorsDuringACommit() throws {
    var number = 0
    while true {
      let chain = try Self.commitChain("cluster_size=4k", "cluster_size=4k")
      let expected = try chain.read()
      let left = FailingFile.Counter(number)
      var options = DiskImageOptions(path: chain.path(ChainFixture.top))
      options.keepsEngineFiles = true
      options.engineFile = { FailingFile($0, left) }
      do throws(JobError) { try commit(options) } catch { #expect(left.hasFailed) }
      #expect(try chain.names.compactMap(chain.damage).isEmpty, "after \(number) changes")
      #expect(try chain.read() == expected, "after \(number) changes")
      if !left.hasFailed { break }
      number += number < 6 ? 1 : 5
    }
    #expect(number > 10)
  }

  // MARK: Rebase

  private static func rebaseChain(_ options: String) throws -> ChainFixture {
    try ChainFixture(
      [ChainFixture.top, base, "new.qcow2"],
      [
        "qemu-img create -q -f qcow2 base.qcow2 100k",
        "qemu-io -f qcow2 -c 'write -P 1 0 70k' base.qcow2 > /dev/null",
        "qemu-img create -q -f qcow2 new.qcow2 300k",
        "qemu-io -f qcow2 -c 'write -P 1 0 30k' -c 'write -P 6 60k 200k' new.qcow2 > /dev/null",
        "qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 -o \(options) top.qcow2 260k",
        "qemu-io -f qcow2 -c 'write -P 3 10k 5k' -c 'write -P 4 200k 5k' top.qcow2 > /dev/null",
      ])
  }

  private func rebase(
    _ chain: ChainFixture, to name: String?, _ options: DiskImageOptions
  ) throws(JobError) {
    let job = RebaseJob(
      base: name, format: name == nil ? nil : .qcow2, isUnsafe: false, compresses: false)
    try OfflineHost.run(job, options, base: DiskImageOptions(path: ""), JobContext())
  }

  @Test(
    "A power cut during a rebase leaves what the image reads, on the old base or the new one",
    arguments: [
      "cluster_size=4k", "cluster_size=512", "cluster_size=16k,extended_l2=on",
      "cluster_size=4k,compat=0.10",
    ], ["new.qcow2", nil])
  func powerCutsDuringARebase(options: String, name: String?) throws {
    let chain = try Self.rebaseChain(options)
    let (expected, seed) = (try chain.read(), testSeed("rebase power cut"))
    let originals = [try chain.bytes(ChainFixture.top)]
    let log = HostLog(clock: LogicalClock())
    try rebase(chain, to: name, try chain.options(recording: [ChainFixture.top], log))
    #expect(try chain.read() == expected)
    let crashes = CrashEnumerator(originals: originals, events: log.events, seed: seed)
    var failure: String?
    crashes.visit(perCut: testSetting("QUBLK_CUTS", default: 1)) { state in
      do {
        let cut = try chain.with([(ChainFixture.top, state.bytes)])
        failure = try cut.damage(ChainFixture.top)
        if failure == nil, try cut.read() != expected { failure = "reads otherwise" }
        if failure == nil, crashes.count % 16 == 0 {
          try rebase(cut, to: name, DiskImageOptions(path: cut.path(ChainFixture.top)))
          if try cut.read() != expected { failure = "after another rebase it reads otherwise" }
        }
      } catch { failure = "\(error)" }
      failure = failure.map { "\(state.description): \($0)" }
      return failure == nil
    }
    #expect(failure == nil, "seed \(seed): \(failure ?? "")")
  }
}
