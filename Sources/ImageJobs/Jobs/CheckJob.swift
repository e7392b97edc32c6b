package import JSON
import QCOW2Format
package import QCOW2Tools

/// Whether the metadata of an image is consistent, and its repair: `check`.
///
/// Findings are told as they are met, of very many only how many there were.
package struct CheckJob: FileJob {
  /// What a repair may change; the raw value is the word of `check -r`.
  package enum Repair: String, CaseIterable, Sendable {
    case leaks, all

    var mode: RepairMode { self == .leaks ? .leaks : .all }
  }

  package static let name = "check"
  /// Each has buffers of its own, and reads of the file are all that more would do at once.
  private static let mostThreads = 8
  package var changesImage: Bool { repair != nil }
  /// What is to be put right before the verdict; nil for nothing.
  package var repair: Repair?

  /// The job.
  package init(repair: Repair? = nil) { self.repair = repair }

  package init(_ arguments: inout JobArguments) throws(JobError) {
    repair = try arguments.word("repair", Repair.self)
  }

  package var arguments: JSONValue {
    .object(repair.map { [.init("repair", .string($0.rawValue))] } ?? [])
  }

  package func run(
    on file: ImageFile, _ context: JobContext<NoValue>
  ) async throws(JobError) -> CheckResult {
    try await context.checkpoint()
    context.progress.begin(repair == nil ? 1 : 3, .steps)
    guard let repair else {
      return try Self.step(context) { () throws(ToolError) in try Self.check(file, context) }
    }
    return try Self.repair(file, repair, context)
  }

  /// Takes one of the steps, between which the image is whole.
  private static func step<R>(
    _ context: JobContext<NoValue>, _ body: () throws(ToolError) -> R
  ) throws(JobError) -> R {
    try context.cancellation.check()
    defer { context.progress.advance(by: 1) }
    do throws(ToolError) { return try body() } catch {
      if case .cancelled = error { throw .cancelled }
      throw .file(error)
    }
  }

  /// Checks, repairs, and checks again what was repaired.
  private static func repair(
    _ file: ImageFile, _ repair: Repair, _ context: JobContext<NoValue>
  ) throws(JobError) -> CheckResult {
    try step(context) { () throws(ToolError) in try checkBefore(file, repair, context) }
    let changes = try step(context) { () throws(ToolError) in
      try RefcountRebuild.repair(file.bytes, repair.mode)
    }
    if !changes.isEmpty { context.tell(.output(changes.humanText)) }
    if let obstacle = changes.obstacle { context.tell(.note(obstacle.message)) }
    var result = try step(context) { () throws(ToolError) in
      try check(file, afterRepair: repair, context)
    }
    result.note(changes)
    if result.exitCode != 0, let way = wayOut(result, repair) { context.tell(.note(way)) }
    return result
  }

  /// Says what is wrong before the repair; a snapshot table that only a repair can read is no end.
  private static func checkBefore(
    _ file: ImageFile, _ repair: Repair, _ context: JobContext<NoValue>
  ) throws(ToolError) {
    do throws(ToolError) { _ = try check(file, context) } catch {
      guard case .format(let problem) = error, repair == .all else { throw error }
      context.tell(.note(problem.message))
    }
  }

  private static func check(
    _ file: ImageFile, afterRepair repair: Repair? = nil, _ context: JobContext<NoValue>
  ) throws(ToolError) -> CheckResult {
    var findings = FindingNotes(repaired: repair, context.tell)
    let cancellation = context.cancellation
    let result = try ImageCheck.run(
      file.bytes, threads: .onProcessors(atMost: mostThreads), report: { findings.add($0) },
      isCancelled: { cancellation.isCancelled })
    findings.end()
    return result
  }

  /// How to go on where a repair could not mend everything.
  private static func wayOut(_ result: CheckResult, _ repair: Repair) -> String? {
    if repair == .leaks {
      return "only leaks were repaired: \"qublk check -r all\" repairs more"
    }
    guard result.corruptions > 0 || result.checkErrors > 0 else { return nil }
    return
      "the rest cannot be repaired: attach the image with \"qublk add --read-only\" and copy off "
      + "what can be read; requests that meet the damage fail"
  }
}

/// Tells findings as they come, and of very many only how many there were.
struct FindingNotes {
  private static let most = 100

  /// After which repair the findings are left; nil before one.
  private let repaired: CheckJob.Repair?
  private let tell: (JobMessage) -> Void
  private var count = 0

  init(repaired: CheckJob.Repair?, _ tell: @escaping (JobMessage) -> Void) {
    self.repaired = repaired
    self.tell = tell
  }

  mutating func add(_ finding: CheckFinding) {
    count += 1
    guard count <= Self.most else { return }
    let reason = repaired == .all && finding.severity != .remark ? ": \(finding.whyItStays)" : ""
    tell(.note(finding.message + reason))
  }

  /// Says how many are not listed, of so many findings that there were.
  func end(of total: Int? = nil) {
    let count = total ?? count
    if count > Self.most { tell(.note("\(count - Self.most) more findings are not listed")) }
  }
}

extension CheckResult: JobValue {}
