import BlockCore
import Dispatch
import QCOW2Tools
import Synchronization
import TestTools
import Testing

extension CheckThreads {
  /// Three threads of the system's own.
  static let concurrent = CheckThreads(3) { count, body in
    DispatchQueue.concurrentPerform(iterations: count) { body($0) }
  }
}

/// A check on several threads finds what a check on one thread finds, and tells it in the same order.
@Suite struct CheckThreadsTests {
  /// 2048 L2 tables of 64 entries each, of which many are wrong, in several ways: several runs of tables.
  private func damaged(_ folder: Folder, seed: UInt64) -> MemoryBytes {
    folder.run(
      "qemu-img create -q -f qcow2 -o preallocation=metadata,cluster_size=512 wide 64M")
    var editor = ImageEditor(folder.bytes("wide"))
    var generator = SeededGenerator(seed: seed)
    for index in 0..<2048 {
      let table = editor.l2(index)
      for _ in 0..<(index % 4) {
        let entry = table + Int.random(in: 0..<64, using: &generator) * 8
        switch Int.random(in: 0..<6, using: &generator) {
        case 0: editor.change(entry) { $0 ^ 1 << 63 }
        case 1: editor.set(entry, 8, 1 << 63 | UInt64(table))
        case 2: editor.set(entry, 8, 1 << 63 | 1 << 50)
        case 3: editor.change(entry) { $0 | 1 << 57 }
        case 4: editor.set(entry, 8, 1 << 63 | UInt64.random(in: 0..<8, using: &generator) << 9)
        default: editor.set(entry, 8, 0)
        }
      }
    }
    return MemoryBytes(editor.bytes)
  }

  @Test func findingsAndTheirOrderAreTheSame() throws {
    for seed in 0..<4 {
      let image = damaged(try Folder(), seed: UInt64(seed))
      var one: [CheckFinding] = []
      let result = try ImageCheck.run(image) { one.append($0) }
      #expect(one.count > 2000 && result.corruptions > 1000 && result.leaks > 200)
      for _ in 0..<4 {
        var several: [CheckFinding] = []
        let same = try ImageCheck.run(image, threads: .concurrent) { several.append($0) }
        #expect(same == result && several == one)
      }
    }
  }

  /// More findings of one run than are kept in memory.
  @Test func moreFindingsThanAreKeptAreToldInOrder() throws {
    let folder = try Folder()
    folder.run("qemu-img create -q -f qcow2 -o preallocation=metadata,cluster_size=64k many 4G")
    folder.run("truncate -s 700k many")
    let image = MemoryBytes(folder.bytes("many"))
    var one: [CheckFinding] = []
    let result = try ImageCheck.run(image) { one.append($0) }
    var several: [CheckFinding] = []
    let same = try ImageCheck.run(image, threads: .concurrent) { several.append($0) }
    #expect(one.count > 8000 && same == result && several == one)
  }

  /// The error of the first table that cannot be read, whoever meets its error first.
  @Test func theFirstErrorIsTold() throws {
    let folder = try Folder()
    folder.run("qemu-img create -q -f qcow2 -o preallocation=metadata,cluster_size=512 wide 64M")
    let editor = ImageEditor(folder.bytes("wide"))
    let image = FailingBytes(editor.bytes, at: [700, 1100, 1900].map { editor.l2($0) })
    var errors: Set<String> = []
    for threads in [.one, CheckThreads.concurrent, .concurrent, .concurrent, .concurrent] {
      let error = #expect(throws: ToolError.self) { try ImageCheck.run(image, threads: threads) }
      errors.insert(try #require(error).message)
    }
    #expect(errors.count == 1, "\(errors)")
  }

  @Test func aCancelledCheckEndsOnAllThreads() throws {
    let image = damaged(try Folder(), seed: 3)
    let asked = Atomic(0)
    #expect(throws: ToolError.cancelled) {
      try ImageCheck.run(
        image, threads: .concurrent,
        isCancelled: { asked.wrappingAdd(1, ordering: .relaxed).newValue > 3 })
    }
  }
}

/// An image of which some places cannot be read.
private final class FailingBytes: ImageBytes {
  private let inner: MemoryBytes
  private let places: [Int]

  init(_ bytes: [UInt8], at places: [Int]) {
    inner = MemoryBytes(bytes)
    self.places = places
  }

  var length: UInt64 { inner.length }

  func read(
    into buffer: UnsafeMutableRawBufferPointer, at offset: HostOffset
  ) throws(ToolError) {
    let range = Int(offset.bytes)..<Int(offset.bytes) + buffer.count
    if places.contains(where: { range.contains($0) }) {
      throw .host(.read(at: offset), errno: .io)
    }
    try inner.read(into: buffer, at: offset)
  }
}
