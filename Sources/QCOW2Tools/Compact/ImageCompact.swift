import BlockCore
package import QCOW2Codec
import QCOW2Format

/// Moves the clusters of an image that nobody has open down into free places, and cuts the file.
///
/// Everything has a copy before anything leads to it, and both places have a refcount meanwhile. A round is,
/// `|` being an fsync:
///
///     refcounts of old and new places, behind all else | header points at these |
///     copies of data and of tables, with pointers to new places | pointers that stay where they are |
///     refcounts of what is referred to | header points at these | cut
///
/// A pointer leads to the old place or to the new one, and both have the same contents, so pointers change in
/// any order. No cluster ever has more references than its refcount says. A crash leaves an image that reads
/// the same, at worst with leaked clusters; the next compaction goes on from there.
///
/// Memory follows the length of the file: 2 bytes for each host cluster in use, 2 more where data is compressed,
/// and for each round what ``CompactPlan/standardMost`` moves take, 128 MiB at most. It does not follow the
/// virtual size.
package struct ImageCompact {
  /// What a compaction has done, or would do.
  package struct Outcome: Equatable, Sendable {
    /// The bytes up to the end of the last cluster in use; of a regular file its length.
    package var before: UInt64
    package var after: UInt64
    /// The bytes that were copied.
    package var moved: UInt64 = 0
    package var isBlockDevice: Bool

    package init(before: UInt64, after: UInt64, moved: UInt64 = 0, isBlockDevice: Bool) {
      self.before = before
      self.after = after
      self.moved = moved
      self.isBlockDevice = isBlockDevice
    }
  }

  /// What a compaction tells while it runs.
  package struct Watch {
    /// Called with the bytes that a round copies, before it does.
    package var begin: (UInt64) -> Void
    /// Called with the bytes that have been copied; may throw ``ToolError/cancelled``: the image is whole.
    package var step: (UInt64) throws(ToolError) -> Void

    package init(
      begin: @escaping (UInt64) -> Void = { _ in },
      step: @escaping (UInt64) throws(ToolError) -> Void = { _ throws(ToolError) in }
    ) {
      self.begin = begin
      self.step = step
    }
  }

  /// Rounds that only make room, and those that gain nothing, are no more than this.
  private static let mostRooms = 16

  private let file: any WritableImageBytes
  private let secret: Secret?
  private let most: Int
  private let watch: Watch

  /// A compaction of an image that is locked for writing.
  ///
  /// - Parameters:
  ///   - file: The image.
  ///   - secret: What unlocks an image that is encrypted by LUKS: its data is encrypted anew where it moves.
  ///   - most: The most clusters that one round moves; nil for the standard.
  ///   - watch: Who is told.
  package init(
    _ file: any WritableImageBytes, secret: Secret? = nil, most: Int? = nil,
    watch: Watch = Watch()
  ) {
    self.file = file
    self.secret = secret
    self.most = most ?? CompactPlan.standardMost
    self.watch = watch
  }

  /// What a compaction would gain; changes nothing.
  ///
  /// - Returns: With ``Outcome/after`` as it is if everything can be moved: compressed data may take more.
  /// - Throws: ``ToolError/compact(_:)`` for an image that must be repaired first.
  package func estimate() throws(ToolError) -> Outcome {
    let leaks = try requireSound()
    let survey = try CompactSurvey(file)
    let (goal, _) = try CompactPlan.goal(survey)
    let before = end(of: survey, leaks)
    let after = min(before, survey.geometry.start(of: goal).bytes)
    return Outcome(before: before, after: after, isBlockDevice: file.isBlockDevice)
  }

  /// Carries the compaction out.
  ///
  /// - Throws: ``ToolError/compact(_:)`` with nothing changed for an image that must be repaired first, or
  ///   whose secret is missing. Any other error leaves the image whole; see above.
  package func run() throws(ToolError) -> Outcome {
    let leaks = try requireSound()
    var survey = try CompactSurvey(file)
    let (goal, _) = try CompactPlan.goal(survey)
    var outcome = Outcome(
      before: end(of: survey, leaks), after: 0, isBlockDevice: file.isBlockDevice)
    outcome.after = outcome.before
    if survey.geometry.start(of: goal).bytes >= outcome.before { return outcome }
    let cipher = try cipher(survey.scan.check.head)
    try prepare(survey.scan.check.head)
    if leaks {
      // COPIED and refcounts of what has references must agree before both places get them.
      _ = try RefcountRebuild.run(file)
      survey = try CompactSurvey(file)
    }
    var rooms = 0
    while true {
      let before = try Progress(survey)
      let plan = try CompactPlan(survey, most: most, mayMakeRoom: rooms < Self.mostRooms)
      if plan.makesRoom { rooms += 1 }
      if before.isDone(plan), !isLonger(than: survey.end, survey.geometry) { break }
      try watch.step(0)
      survey = try carryOut(plan, survey, cipher)
      outcome.moved += plan.relocation.bytes
      outcome.after = end(of: survey, false)
      if !plan.makesRoom, try Progress(survey) >= before { break }
    }
    return outcome
  }

  /// How much there is to do; each round must make it less.
  private struct Progress: Comparable {
    let end: HostCluster
    /// The clusters in use behind the goal.
    private(set) var behind: UInt64 = 0

    init(_ survey: CompactSurvey) throws(ToolError) {
      end = survey.end
      let (goal, _) = try CompactPlan.goal(survey)
      var count: UInt64 = 0
      if goal < survey.scan.fileEnd {
        survey.forEachUsed(in: goal..<survey.scan.fileEnd) { _ in count += 1 }
      }
      behind = count
    }

    /// Whether a round has nothing to bring.
    func isDone(_ plan: CompactPlan) -> Bool {
      plan.relocation.isEmpty && (end <= plan.goal || plan.refcountPlace == nil)
    }

    static func < (left: Self, right: Self) -> Bool {
      (left.end, left.behind) < (right.end, right.behind)
    }
  }

  private func isLonger(than end: HostCluster, _ geometry: ClusterGeometry) -> Bool {
    !file.isBlockDevice && file.length > geometry.start(of: end).bytes
  }

  private func end(of survey: CompactSurvey, _ hasLeaks: Bool) -> UInt64 {
    let end = survey.geometry.start(of: survey.end).bytes
    return file.isBlockDevice ? end : file.length
  }

  /// Refuses what no compaction may touch.
  ///
  /// - Returns: Whether refcounts are to be counted anew first.
  private func requireSound() throws(ToolError) -> Bool {
    let head = try HeaderCluster(reading: file)
    if let problem = head.header.problemForWriting(fileLength: head.fileLength) {
      throw .format(problem)
    }
    if head.header.incompatible.contains(.corrupt) { throw .compact(.markedCorrupt) }
    if head.header.incompatible.contains(.dirty) { return true }
    var first: CheckFinding?
    let result = try ImageCheck.run(file) { finding in
      if first == nil, finding.severity != .leak { first = finding }
    }
    guard result.corruptions == 0, result.checkErrors == 0 else {
      throw .compact(.damaged(first))
    }
    return result.leaks > 0
  }

  private func prepare(_ head: HeaderCluster) throws(ToolError) {
    let kept = head.header.autoclearToKeep(keepsBitmaps: head.last(.bitmaps) != nil)
    try HeaderSector(file).prepareForWriting(keeping: kept, marksDirty: false)
  }

  /// The cipher of data that must be encrypted anew where it moves; nil if none is.
  private func cipher(_ head: HeaderCluster) throws(ToolError) -> (any SectorCipher)? {
    guard head.header.cryptMethod == 2, let pointer = head.encryptionHeader else { return nil }
    guard let secret else { throw .compact(.secretMissing) }
    let length = min(pointer.length, UInt64(LUKSPartitionHeader.largestArea))
    let area = try file.block(at: pointer.offset, count: Int(length))
    defer { withExtendedLifetime(area) {} }
    do throws(LUKSError) {
      return try unsafe LUKSCipher(
        unlocking: UnsafeRawBufferPointer(start: area.base, count: area.count), passphrase: secret)
    } catch { throw .luks(error) }
  }

  /// - Returns: The image as it is after the round.
  private func carryOut(
    _ plan: CompactPlan, _ survey: CompactSurvey, _ cipher: (any SectorCipher)?
  ) throws(ToolError) -> CompactSurvey {
    watch.begin(plan.relocation.bytes)
    // Also where nothing moves: the old refcounts are in the way of the new ones.
    try count(plan, survey.scan)
    if !plan.relocation.isEmpty {
      let watch = watch
      let tables = TableMoves(file: file, scan: survey.scan, relocation: plan.relocation) {
        () throws(ToolError) in try watch.step(0)
      }
      try DataMoves(
        file: file, scan: survey.scan, relocation: plan.relocation, cipher: cipher,
        step: watch.step
      ).copy()
      try tables.write(.moved)
      try file.sync()
      try tables.write(.staying)
      try CompactHeader.change(file, survey.scan.check.head, plan.relocation)
      try file.sync()
    }
    return try settle(plan)
  }

  /// Gives the new places refcounts beside the old ones.
  private func count(_ plan: CompactPlan, _ scan: RefcountScan) throws(ToolError) {
    let new = try NewRefcounts(
      scan, counting: plan.counts, placingFrom: plan.goal, isBlockDevice: file.isBlockDevice,
      length: file.length)
    let length = file.length
    do throws(ToolError) { try new.prepare(file, scan) } catch {
      // Nothing leads there: what a full host could not hold is cut off again.
      if !file.isBlockDevice, file.length > length { try? file.setLength(length) }
      throw error
    }
    try HeaderSector(file).setRefcountTable(new.plan, snapshotTable: nil)
  }

  /// Counts what is referred to now, and cuts the file behind it.
  private func settle(_ plan: CompactPlan) throws(ToolError) -> CompactSurvey {
    let scan = try RefcountScan(file, plansRepair: false)
    if let damage = scan.otherDamage ?? scan.doubleUse { throw .notOnlyRefcounts(damage) }
    let new = try NewRefcounts(
      scan, placingFrom: plan.refcountPlace ?? HostCluster(1), isBlockDevice: file.isBlockDevice,
      length: file.length)
    try new.write(to: file, scan)
    let survey = try CompactSurvey(file)
    if isLonger(than: survey.end, survey.geometry) {
      try file.setLength(survey.geometry.start(of: survey.end).bytes)
      try file.sync()
    }
    return survey
  }
}
