import BlockCore
import CSteps
import Glibc
import QCOW2Format
import TestSupport
import Testing

@testable import QCOW2Engine

/// Changes of metadata memory, looked at behind each instruction: the compiler keeps the stores in order, too.
@Suite(.serialized) struct SingleStepTests {
  /// What the child does, and what the parent finds behind each of its instructions.
  private final class Steps {
    let work: () -> Void
    let look: () -> Void

    init(work: @escaping () -> Void, look: @escaping () -> Void) {
      (self.work, self.look) = (work, look)
    }

    /// The number of instructions.
    func run() -> Int {
      qublk_single_step(
        { Unmanaged<Steps>.fromOpaque($0).takeUnretainedValue().work() },
        { Unmanaged<Steps>.fromOpaque($0).takeUnretainedValue().look() },
        Unmanaged.passUnretained(self).toOpaque())
    }
  }

  /// The words at an address of the child.
  private static func words(_ address: UnsafeRawPointer, _ count: Int) -> [UInt64] {
    var words = [UInt64](repeating: 0, count: count)
    let failed = words.withUnsafeMutableBytes { buffer in
      qublk_peek(buffer.baseAddress, address, buffer.count)
    }
    #expect(failed == 0)
    return words
  }

  @Test("A slice has its mark before any of its bytes change")
  func aSlice() async throws {
    let memory = try MetadataMemory()
    let cache = try SliceCache(.l2, sliceSize: 512, slots: 1, in: memory)
    let key = HostOffset(1 << 16)
    cache.insertZeroes(key)
    let slot = try #require(slots(memory))
    let slice = UnsafeRawPointer(cache.slices.base)
    var seen = Set<[UInt64]>()
    let steps = Steps {
      _ = cache.changeResident(key) { slice in
        for index in 0..<4 { slice.storeBE64(UInt64(index + 1), index * 8) }
      }
    } look: {
      let bytes = Self.words(slice, 4).map(\.bigEndian)
      let found = Self.words(slot, 3)
      #expect(found[0] == key.bytes)
      #expect(found[2] != 0 || bytes == [0, 0, 0, 0], "no mark at \(bytes)")
      seen.insert([min(found[2], 1)] + bytes)
    }
    #expect(steps.run() > 50)
    // Each store was a state of its own.
    #expect(
      seen.isSuperset(of: [[0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 2, 3, 4]]))
    #expect(seen.count == 6, "\(seen)")
    withExtendedLifetime(cache) {}
  }

  private func slots(_ memory: MetadataMemory) -> UnsafeRawPointer? {
    (0..<MetadataHead.capacity).first { memory.head[$0].kind == MetadataKind.l2Slots.rawValue }
      .flatMap { memory.address($0).map { UnsafeRawPointer($0) } }
  }

  @Test("An extended entry reads, in each subcluster, as before or as after")
  func anExtendedEntry() async throws {
    let memory = try MetadataMemory()
    let cache = try SliceCache(.l2, sliceSize: 512, slots: 1, in: memory)
    let key = HostOffset(1 << 16)
    let old = ClusterEntry(
      L2Entry(data: HostOffset(5 << 16), copied: true),
      SubclusterBitmap(allocated: 0xff00, zero: 0xff))
    let new = ClusterEntry(.unallocated, SubclusterBitmap(allocated: 0, zero: 0xffff))
    cache.insertZeroes(key)
    let lookup = try await Image.open(
      MemoryFile(ImageShape.extended[0].builder.build()), options: ImageOptions()
    ).mapping.lookup
    func change(to entry: ClusterEntry) {
      _ = cache.changeResident(key) { slice in
        var entries = SliceEntries(of: slice, first: 1, count: 1, isExtended: true)
        var released: [ClusterRun] = []
        entries.link(0, to: entry, lookup, released: &released)
      }
    }
    // Whatever the runtime does at first is done here: the child has no other threads to wait for.
    for entry in [old, new, old] { change(to: entry) }
    let entry = UnsafeRawPointer(cache.slices.base) + 16
    var states: [[UInt64]] = []
    let steps = Steps {
      change(to: new)
    } look: {
      let found = Self.words(entry, 2).map(\.bigEndian)
      if states.last != found { states.append(found) }
    }
    #expect(steps.run() > 50)
    let between = SplitEntries.bitmap(from: old, to: new).raw
    #expect(
      states == [
        [old.descriptor.raw, old.bitmap.raw], [old.descriptor.raw, between],
        [new.descriptor.raw, between],
      ])
    #expect(between == new.bitmap.raw)
    withExtendedLifetime(cache) {}
  }

  @Test("A sector of a table has a mark before its entry changes, and while a round writes it")
  func aTable() async throws {
    let memory = try MetadataMemory()
    let table = try DiskTable(
      offset: HostOffset(0), bytes: UnsafeRawBufferPointer(start: nil, count: 0), count: 64,
      in: memory, .l1Table)
    // Whatever the runtime does at first is done here: the child has no other threads to wait for.
    table.store(0, at: 3)
    table.wereWritten(table.takeDirty())
    let layout = DiskTableLayout(count: 64)
    let address = try #require(memory.address(0))
    var hasChanged = false
    let steps = Steps {
      table.store(7, at: 3)
      _ = table.takeDirty()
    } look: {
      let words = Self.words(address, layout.words)
      hasChanged = words[3] == 7
      #expect(words[3] == 0 || words[layout.dirty] | words[layout.writing] == 1)
    }
    #expect(steps.run() > 50)
    #expect(hasChanged)
  }

  @Test("A record of reserved clusters is the old one or the new one")
  func aRecord() async throws {
    let memory = try MetadataMemory()
    let record = try ArenaRecords(workers: 1, in: memory).record(of: 0)
    let address = try #require(memory.address(0))
    let runs = (0..<4).map {
      ClusterRun(start: HostCluster(1000 + $0), count: 64 - $0, isFresh: true)
    }
    record.setRun(runs[0])
    var seen: [UInt64] = []
    let steps = Steps {
      for run in runs { record.setRun(run) }
    } look: {
      let word = Self.words(address, 1)[0]
      if seen.last != word { seen.append(word) }
    }
    #expect(steps.run() > 4)
    #expect(seen == runs.map { $0.start.number << 17 | $0.count })
    withExtendedLifetime(memory) {}
  }
}
