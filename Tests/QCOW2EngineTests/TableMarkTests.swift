import BlockCore
import QCOW2Format
import TestSupport
import Testing

@testable import QCOW2Engine

/// The marks of a table that lives in memory, in every order of changes and a round's steps.
@Suite struct TableMarkTests {
  /// What happens to an entry, one store or load at a time.
  private enum Step: Equatable {
    case mark, store
    case look, markWriting, unmark, copy, write, unmarkWriting
  }

  /// One entry, its marks, and the host file's.
  private struct Model {
    var value = 0
    var isDirty = false
    var isWriting = false
    var copied = 0
    var onHost = 0
    /// The round has found the sector dirty.
    var isTaken = false

    mutating func take(_ step: Step) {
      switch step {
      case .mark: isDirty = true
      case .store: value = 1
      case .look: isTaken = isDirty
      case .markWriting: if isTaken { isWriting = true }
      case .unmark: if isTaken { isDirty = false }
      case .copy: copied = value
      case .write: if isTaken { onHost = copied }
      case .unmarkWriting: if isTaken { isWriting = false }
      }
    }

    /// The process may die here.
    var isRight: Bool { isDirty || isWriting || value == onHost }
  }

  /// Whether each state is right, in every order of a change's steps and of two rounds.
  ///
  /// The steps in one inner array follow each other at once.
  private func isAlwaysRight(_ change: [[Step]], _ round: [[Step]]) -> Bool {
    func goOn(_ model: Model, _ change: ArraySlice<[Step]>, _ rounds: ArraySlice<[Step]>) -> Bool {
      for (next, isChange) in [(change.first, true), (rounds.first, false)] {
        guard let next else { continue }
        var model = model
        for step in next {
          model.take(step)
          if !model.isRight { return false }
        }
        let isRight = goOn(
          model, isChange ? change.dropFirst() : change, isChange ? rounds : rounds.dropFirst())
        if !isRight { return false }
      }
      return true
    }
    return goOn(Model(), change[...], (round + round)[...])
  }

  @Test("Only with a lock around mark and store, and a mark while writing, is each moment right")
  func whichOrderIsRight() {
    let round: [[Step]] = [[.look, .markWriting, .unmark, .copy], [.write], [.unmarkWriting]]
    #expect(isAlwaysRight([[.mark, .store]], round))
    // What the locks are for: each step by itself.
    let loose = round.joined().map { [$0] }
    #expect(!isAlwaysRight([[.mark], [.store]], loose))
    #expect(!isAlwaysRight([[.mark], [.store], [.mark]], loose))
    #expect(!isAlwaysRight([[.store, .mark]], round))
    // And what the second mark is for.
    #expect(!isAlwaysRight([[.mark, .store]], [[.look, .unmark, .copy], [.write]]))
    let late: [[Step]] = [[.look, .unmark, .markWriting, .copy], [.write], [.unmarkWriting]]
    #expect(!isAlwaysRight([[.mark, .store]], late))
  }

  /// A table, its host file, and what a round has in its hands.
  private final class Subject: @unchecked Sendable {  // why: one thread
    let memory: MetadataMemory
    let table: DiskTable
    var host = [UInt64](repeating: 0, count: 128)
    var taken: [TableSector] = []
    var problem: String?

    init() throws(ImageError) {
      memory = try MetadataMemory()
      table = try DiskTable(
        offset: HostOffset(0), bytes: UnsafeRawBufferPointer(start: nil, count: 0), count: 128,
        in: memory, .l1Table)
      memory.afterStore = { [unowned self] in look() }
    }

    /// Whether entries that the host file lacks have a mark.
    private func look() {
      guard let base = memory.address(0) else { return }
      let layout = DiskTableLayout(count: 128)
      let words = base.assumingMemoryBound(to: UInt64.self)
      for entry in 0..<128 where words[entry] != host[entry] {
        let marks = words[layout.dirty] | words[layout.writing]
        if marks >> UInt64(entry / 64) & 1 == 0 { problem = "entry \(entry) has no mark" }
      }
    }

    func take(_ step: Character) {
      switch step {
      case "a": table.store(table.load(3) + 1, at: 3)
      case "b": table.store(table.load(100) + 1, at: 100)
      case "t": taken = table.takeDirty()
      case "w": taken.forEach { write($0) }
      case "d": table.wereWritten(taken)
      default: table.restoreDirty(taken)
      }
    }

    private func write(_ sector: TableSector) {
      for index in 0..<64 { host[sector.index * 64 + index] = sector.buffer.base.be64(index * 8) }
    }
  }

  @Test("No order of changes and rounds, one of which fails, leaves an entry without its mark")
  func changesAndRounds() throws {
    // t: taken, w: written, d: done, f: failed.
    for rounds in ["twdtwd", "twftwd", "tftwd"] {
      var orders = 0
      func goOn(_ order: [Character], _ changes: Substring, _ rounds: Substring) throws {
        if changes.isEmpty && rounds.isEmpty {
          orders += 1
          return try check(order)
        }
        if let next = changes.first { try goOn(order + [next], changes.dropFirst(), rounds) }
        if let next = rounds.first { try goOn(order + [next], changes, rounds.dropFirst()) }
      }
      try goOn([], "aba", rounds[...])
      #expect(orders >= 56)
    }
  }

  private func check(_ order: [Character]) throws {
    let subject = try Subject()
    for step in order { subject.take(step) }
    // One more round leaves nothing behind.
    for step in "twd" { subject.take(step) }
    #expect(subject.problem == nil, "\(String(order))")
    #expect(subject.host[3] == 2 && subject.host[100] == 1, "\(String(order))")
    #expect(!subject.table.hasDirty)
  }
}
