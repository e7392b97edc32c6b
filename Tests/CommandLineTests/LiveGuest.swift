import BlockCore
import Glibc
import ImageJobs
import QCOW2Engine
import Synchronization
import TestTools
import Testing
import Uring

/// A guest of a served image: each writer writes numbered blocks in its own region, one after the other.
final class LiveGuest: Sendable {
  static let writers = 2
  static let blockBytes = 4096
  private static let blocks = 32

  private let image: Image
  private let isOver = Atomic(false)
  /// Of each writer, how many writes have begun and how many have ended.
  private let begun: [Counter]
  private let ended: [Counter]
  private let threads = Mutex<[WorkerThread]>([])

  private final class Counter: Sendable {
    let value = Atomic<Int>(0)
    var now: Int { value.load(ordering: .sequentiallyConsistent) }
    func up() { value.wrappingAdd(1, ordering: .sequentiallyConsistent) }
  }

  /// Writes each region once, then goes on until ``stop()``.
  init(_ image: Image) throws {
    self.image = image
    begun = (0..<Self.writers).map { _ in Counter() }
    ended = (0..<Self.writers).map { _ in Counter() }
    for writer in 0..<Self.writers {
      let thread = try WorkerThread(name: "guest") { [self] in
        do throws(JobError) {
          try JobLoop.run { [self] _ async throws(JobError) in await work(writer) }
        } catch { Issue.record("the guest: \(error)") }
      }
      threads.withLock { $0.append(thread) }
    }
    wait(writes: Self.blocks)
  }

  /// Waits until each writer has written so many blocks in all.
  func wait(writes: Int) {
    let end = now() + 20
    while ended.contains(where: { $0.now < writes }), now() < end { usleep(1000) }
    #expect(!ended.contains { $0.now < writes }, "the guest does not get on")
  }

  /// Waits until each writer has written so many more blocks.
  func goOn(writes: Int) { wait(writes: (ended.map(\.now).max() ?? 0) + writes) }

  func stop() {
    isOver.store(true, ordering: .sequentiallyConsistent)
    for thread in threads.withLock({ $0 }) { thread.join() }
    threads.withLock { $0 = [] }
  }

  private func work(_ writer: Int) async {
    let buffer = IOBuffer(count: Self.blockBytes)
    defer { withExtendedLifetime(buffer) {} }
    while !isOver.load(ordering: .sequentiallyConsistent) {
      let number = begun[writer].now + 1
      Self.fill(buffer.base, writer, number)
      let request = BlockRequest(
        .write, offset: GuestOffset(UInt64(Self.place(writer, number))),
        length: UInt64(Self.blockBytes), data: buffer.data)
      begun[writer].up()
      let result = await image.serve(request, at: RequestSlot(worker: writer, number: 0))
      #expect(result == .done)
      if result != .done { return }
      ended[writer].up()
      await Task.yield()
    }
  }

  private static func place(_ writer: Int, _ number: Int) -> Int {
    (writer * blocks + number % blocks) * blockBytes
  }

  /// The number of a write stands at the start of its block; the rest follows from it.
  private static func fill(_ block: UnsafeMutableRawPointer, _ writer: Int, _ number: Int) {
    memset(block, Int32((number &* 31 &+ writer &* 7) & 255), blockBytes)
    block.storeBytes(of: number, as: Int.self)
  }

  // MARK: What a disk has

  /// How far the writers are.
  struct Moment {
    fileprivate let writes: [Int]
  }

  /// The writes that have ended.
  var done: Moment { Moment(writes: ended.map(\.now)) }
  /// The writes that have begun.
  var started: Moment { Moment(writes: begun.map(\.now)) }

  /// What is wrong with a disk that is to be the disk at one moment between the two; nil for nothing.
  static func problem(_ disk: [UInt8], between first: Moment, _ last: Moment) -> String? {
    let wanted = UnsafeMutableRawPointer.allocate(byteCount: blockBytes, alignment: 8)
    defer { wanted.deallocate() }
    for writer in 0..<writers {
      var numbers: [Int] = []
      for block in 0..<blocks {
        let start = (writer * blocks + block) * blockBytes
        let (number, isWhole) = disk.withUnsafeBytes { bytes in
          let number = bytes.loadUnaligned(fromByteOffset: start, as: Int.self)
          fill(wanted, writer, number)
          return (
            number, bytes.baseAddress.map { memcmp($0 + start, wanted, blockBytes) == 0 } ?? false
          )
        }
        if !isWhole || number % blocks != block {
          return "block \(block) of writer \(writer) is no whole write"
        }
        numbers.append(number)
      }
      let newest = numbers.max() ?? 0
      for (block, number) in numbers.enumerated() where number <= newest - blocks {
        return "block \(block) of writer \(writer) has write \(number), though \(newest) is there"
      }
      guard (first.writes[writer]...last.writes[writer]).contains(newest) else {
        return "writer \(writer): the last write is \(newest), expected \(first.writes[writer]) to "
          + "\(last.writes[writer])"
      }
    }
    return nil
  }
}
