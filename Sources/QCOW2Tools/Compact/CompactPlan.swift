import BlockCore
import QCOW2Format

/// What one round of a compaction moves.
struct CompactPlan {
  /// The most clusters, and pieces of compressed data, that one round moves: it bounds memory.
  static let standardMost = 1 << 20

  /// No cluster behind this one would be in use if all could be moved down.
  let goal: HostCluster
  var relocation: Relocation
  /// The refcounts that the new places have from the start of the round on.
  var counts: [HostCluster: UInt64] = [:]
  /// Where the refcounts go at the end of the round; nil for wherever there is room.
  var refcountPlace: HostCluster?
  /// The round makes room for structures that have several clusters.
  var makesRoom = false

  /// The smallest file that holds what is in use, and its refcounts.
  ///
  /// - Throws: ``ToolError/limit(_:found:allowed:)`` if the refcount table would be too long.
  static func goal(_ survey: CompactSurvey) throws(ToolError) -> (HostCluster, refcounts: UInt64) {
    do throws(RefcountPlan.TableTooLong) {
      let plan = try RefcountPlan(newImageWith: survey.used, survey.geometry)
      let refcounts = UInt64(plan.table.count + plan.blocks.count)
      return (HostCluster(survey.used + refcounts), refcounts)
    } catch {
      throw .limit(
        .refcountTableEntries, found: error.entries, allowed: FormatLimit.refcountTableBytes / 8)
    }
  }

  /// Plans a round: what lies behind the goal goes to free places before it.
  ///
  /// - Parameters:
  ///   - survey: The image.
  ///   - most: See ``standardMost``.
  ///   - mayMakeRoom: Whether the round may clear a place for a structure that fits nowhere.
  /// - Throws: ``ToolError`` if a table cannot be read, or the refcount table would be too long.
  init(
    _ survey: CompactSurvey, most: Int = standardMost, mayMakeRoom: Bool
  ) throws(ToolError) {
    let (goal, refcounts) = try Self.goal(survey)
    self.goal = goal
    relocation = Relocation(survey.geometry)
    var places = FreePlaces(survey.freeRuns(below: goal, most: most))
    let homeless = placeStructures(survey, refcounts, &places)
    if mayMakeRoom, let homeless, let room = Self.room(for: homeless, survey, below: goal) {
      // Structures are short beside what a round may move, but a room is cleared as a whole or not at all.
      let most = max(most, room.count)
      var cleared = FreePlaces(survey.freeRuns(below: goal, most: most), without: room)
      var filling = CompactFilling(survey, most: most)
      if try filling.fill(from: room, &cleared, all: true) {
        relocation = filling.relocation
        counts = filling.counts
        refcountPlace = nil
        makesRoom = true
        relocation.sort()
        return
      }
    }
    guard goal < survey.scan.fileEnd else { return }
    var filling = CompactFilling(survey, most: most)
    _ = try filling.fill(from: goal..<survey.scan.fileEnd, &places, all: false)
    for move in filling.relocation.moves { relocation.add(move.source, to: move.target) }
    relocation.add(filling.relocation.compressed)
    counts.merge(filling.counts) { first, _ in first }
    relocation.sort()
  }

  /// Finds places for the refcounts and for structures of several clusters that reach behind the goal.
  ///
  /// - Returns: The clusters of those that fit nowhere, together; nil if there are none.
  private mutating func placeStructures(
    _ survey: CompactSurvey, _ refcounts: UInt64, _ places: inout FreePlaces
  ) -> UInt64? {
    var homeless: UInt64 = 0
    var tooLong = UInt64.max
    let moving: [Range<HostCluster>?] = survey.structures.filter { $0.upperBound > goal }
    func length(_ structure: Range<HostCluster>?) -> UInt64 {
      structure.map { UInt64($0.count) } ?? refcounts
    }
    // The longest first; nil stands for the refcounts.
    for structure in (moving + [nil]).sorted(by: { length($0) > length($1) }) {
      let count = length(structure)
      guard count < tooLong, let place = places.take(count) else {
        tooLong = min(tooLong, count)
        homeless += count
        continue
      }
      guard let structure else {
        refcountPlace = place
        continue
      }
      for cluster in structure {
        let target = place + (cluster - structure.lowerBound)
        relocation.add(cluster, to: target)
        counts[target] = survey.scan.check.references.count(of: cluster)
      }
    }
    return homeless == 0 ? nil : homeless
  }

  /// The range of `length` clusters before `goal` with the least in use that can all be moved away.
  private static func room(
    for length: UInt64, _ survey: CompactSurvey, below goal: HostCluster
  ) -> Range<HostCluster>? {
    var best: (range: Range<HostCluster>, used: UInt64)?
    var start = HostCluster(1)
    let obstacles = (survey.structures + survey.fixed).sorted { $0.lowerBound < $1.lowerBound }
    for obstacle in obstacles + [goal..<(goal + 1)] {
      let end = min(obstacle.lowerBound, goal)
      if start < end, end - start >= length {
        let found = emptiest(length, survey, in: start..<end)
        if found.used < best?.used ?? UInt64.max { best = found }
      }
      start = max(start, obstacle.upperBound)
    }
    return best?.range
  }

  /// The range of `length` clusters inside `range` with the least in use.
  private static func emptiest(
    _ length: UInt64, _ survey: CompactSurvey, in range: Range<HostCluster>
  ) -> (range: Range<HostCluster>, used: UInt64) {
    func cost(_ cluster: HostCluster) -> UInt64 { survey.isFree(cluster) ? 0 : 1 }
    var start = range.lowerBound
    var used: UInt64 = 0
    for cluster in start..<(start + length) { used += cost(cluster) }
    var best = (range: start..<(start + length), used: used)
    while start + length < range.upperBound {
      used += cost(start + length)
      used -= cost(start)
      start += 1
      if used < best.used { best = (start..<(start + length), used) }
    }
    return best
  }
}

/// Runs of free clusters, from which places are taken.
struct FreePlaces {
  private(set) var runs: [Range<HostCluster>]

  init(_ runs: [Range<HostCluster>]) { self.runs = runs }

  /// The same without the clusters of a range, the shortest runs first.
  init(_ runs: [Range<HostCluster>], without range: Range<HostCluster>) {
    // The shortest first: long ones are for structures.
    self.runs = runs.flatMap { run in
      [
        run.lowerBound..<max(run.lowerBound, min(run.upperBound, range.lowerBound)),
        min(run.upperBound, max(run.lowerBound, range.upperBound))..<run.upperBound,
      ].filter { !$0.isEmpty }
    }.sorted { $0.count < $1.count }
  }

  var count: UInt64 { runs.reduce(0) { $0 + UInt64($1.count) } }

  /// Takes clusters from the shortest run that has so many side by side.
  mutating func take(_ count: UInt64) -> HostCluster? {
    let fitting = runs.indices.filter { UInt64(runs[$0].count) >= count }
    guard let index = fitting.min(by: { runs[$0].count < runs[$1].count }) else { return nil }
    let first = runs[index].lowerBound
    let rest = (first + count)..<runs[index].upperBound
    if rest.isEmpty { runs.remove(at: index) } else { runs[index] = rest }
    return first
  }

  /// Takes single clusters, in the order of the runs; at most `count`.
  mutating func takeSingles(_ count: Int) -> [HostCluster] {
    var taken: [HostCluster] = []
    var done = 0
    while taken.count < count, done < runs.count {
      let part = runs[done].prefix(count - taken.count)
      taken += part
      runs[done] = part.upperBound..<runs[done].upperBound
      if runs[done].isEmpty { done += 1 }
    }
    runs.removeFirst(done)
    return taken
  }
}
