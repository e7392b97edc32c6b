import BlockCore
import QCOW2Codec
import TestSupport
import Testing

@testable import QCOW2Engine

/// The buffers that compressed bytes are read into.
@Suite struct CompressedInputTests {
  private final class Tally: @unchecked Sendable {  // why: one thread per simulation
    let context: WorkerContext
    var out = 0
    var most = 0
    var done = 0

    init(clusterSize: Int) {
      context = WorkerContext(.zlib, clusterSize: clusterSize, inflate: .zlib)
    }
  }

  @Test(
    "However many requests there are, no more than 32 MiB of compressed bytes are in flight",
    arguments: 1...10 as ClosedRange<UInt64>)
  func inputsAreBounded(seed: UInt64) throws {
    let host = SimulatedHost(seed: seed)
    let tally = Tally(clusterSize: 2 << 20)
    try host.run {
      await withTaskGroup(of: Void.self) { group in
        for number in 0..<60 {
          group.addTask {
            // One in ten is as long as the format permits.
            let buffer = await tally.context.takeInput((number % 10 == 0 ? 4 : 1) << 20)
            tally.out += buffer.count
            tally.most = max(tally.most, tally.out)
            await host.complete("read")
            tally.out -= buffer.count
            tally.context.giveInput(buffer)
            tally.done += 1
          }
        }
      }
    }
    #expect(tally.done == 60)
    #expect(tally.most <= 32 << 20 && tally.most > 24 << 20)
  }

  @Test("A buffer larger than the limit is had alone")
  func aLargeOneIsHadAlone() throws {
    let host = SimulatedHost(seed: 1)
    let tally = Tally(clusterSize: 65536)
    try host.run {
      await withTaskGroup(of: Void.self) { group in
        for count in [33 << 20, 65536, 40 << 20] {
          group.addTask {
            let buffer = await tally.context.takeInput(count)
            tally.out += 1
            tally.most = max(tally.most, tally.out)
            await host.complete("read")
            tally.out -= 1
            tally.context.giveInput(buffer)
            tally.done += 1
          }
        }
      }
    }
    #expect(tally.done == 3 && tally.most == 1)
  }
}
