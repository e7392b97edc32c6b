import BlockCore
import QCOW2Format
import Synchronization

/// Judges all L2 tables, on the threads of the check.
///
/// Counts are sums, and findings are told in the order of the tables: nothing depends on how many threads
/// there are, or which comes first.
struct L2TableWalk {
  /// The most bytes of tables that are read at once, if a table is no larger.
  private static let runBytes: UInt64 = 1 << 17

  private let check: ImageCheck
  private let tables: [(offset: HostOffset, uses: L2Uses)]
  private let perRun: Int

  init(_ check: ImageCheck, _ tables: [HostOffset: L2Uses]) {
    self.check = check
    self.tables = tables.sorted { $0.key < $1.key }.map { ($0.key, $0.value) }
    perRun = max(1, Int(Self.runBytes >> UInt64(check.geometry.clusterBits)))
  }

  func run() throws(ToolError) {
    let runs = OrderedRuns(count: (tables.count + perRun - 1) / perRun)
    let threads = check.threads
    let judges = (0..<threads.count).map { _ in
      L2TableJudge(check, FindingsInOrder(runs, check), threads: threads.count)
    }
    // why unchecked: each judge is used by one thread, and by this one when all have ended.
    let work = Unchecked((self, judges))
    threads.run(forRuns: runs.count) { thread in
      let (walk, judges) = work.value
      let buffer = IOBuffer(unfilled: walk.perRun << walk.check.geometry.clusterBits)
      runs.carryOut(judges[thread].findings) { run throws(ToolError) in
        try walk.judge(run, judges[thread], buffer)
      }
    }
    try runs.end()
    take(judges)
  }

  private func judge(
    _ run: Int, _ judge: L2TableJudge, _ buffer: IOBuffer
  ) throws(ToolError) {
    let size = Int(check.geometry.clusterSize)
    let end = min(tables.count, (run + 1) * perRun)
    var first = run * perRun
    while first < end {
      try check.checkpoint()
      var next = first + 1
      while next < end, tables[next].offset == tables[next - 1].offset + UInt64(size) { next += 1 }
      try check.bytes.read(into: buffer, count: (next - first) * size, at: tables[first].offset)
      for index in first..<next {
        try unsafe judge.judge(
          tables[index].offset, buffer.base + (index - first) * size, tables[index].uses)
      }
      first = next
    }
  }

  private func take(_ judges: [L2TableJudge]) {
    for judge in judges {
      check.result.allocatedClusters &+= judge.counts.allocatedClusters
      check.result.fragmentedClusters &+= judge.counts.fragmentedClusters
      check.result.compressedClusters &+= judge.counts.compressedClusters
      check.mendable += judge.mendable
    }
    let overlaps = judges.flatMap(\.overlaps).sorted { $0.cluster < $1.cluster }
    for overlap in overlaps {
      let offset = check.geometry.start(of: overlap.cluster)
      check.found(
        overlap.other.isShared
          ? .doubleUse(cluster: offset, first: overlap.other, second: .guestData)
          : .overlap(cluster: offset, first: overlap.other, second: .guestData))
    }
  }
}
