import BlockCore
package import DiskImages
package import JSON
import QCOW2Engine
import QCOW2Format
package import QCOW2Tools

/// `check` of an image that a device serves: the same verdict as ``CheckJob``, beside the guest.
///
/// 1. The host file is checked while the guest goes on. What was wrong before is found then, so a clean
///    result stands. Other findings may be the guest's own work in between.
/// 2. If there are findings, requests wait while all is written back and checked once more, but no longer
///    than ``patience``. Most images are checked in that time, and the verdict is exact.
/// 3. For larger images, looks beside the guest are repeated. Between two looks every request ends and is
///    written back (``Image/observe(_:)``), so what the guest causes does not last. A finding counts if three
///    looks in a row have it.
package struct LiveCheckJob: DiskJob {
  package static let name = CheckJob.name
  package var changesImage: Bool { false }
  /// For how many nanoseconds requests may be kept out by one look.
  package var patience: UInt64 = 30_000_000

  /// The looks in a row that a finding must be in, and the most looks.
  private static let (enough, most) = (3, 8)

  /// The job.
  package init() {}

  package init(_ arguments: inout JobArguments) throws(JobError) {
    if try arguments.string("repair") != nil {
      throw .arguments("an attached image cannot be repaired: detach it first")
    }
  }

  package var arguments: JSONValue { .object([]) }

  package func run(
    on disk: any OpenDisk, _ context: JobContext<NoValue>
  ) async throws(JobError) -> CheckResult {
    guard let image = disk as? DiskImage else { throw .format(needed: .qcow2) }
    context.progress.begin(3, .steps)
    try await context.checkpoint()
    let first = try await Self.look(image, context)
    context.progress.reach(1)
    if case .success(let result) = first.result, result.exitCode == 0 {
      return Self.tell(result, first.findings, first.count, context)
    }
    let exact = try await exact(image, context)
    context.progress.reach(2)
    defer { context.progress.reach(3) }
    guard let exact else { return try await Self.lasting(image, context) }
    return Self.tell(try Self.result(exact), exact.findings, exact.count, context)
  }

  // MARK: Looks

  private static func open(_ image: DiskImage) throws(JobError) -> FileBytes {
    do throws(ToolError) {
      let bytes = try image.imageBytes()
      guard try !HeaderCluster(reading: bytes).header.incompatible.contains(.dirty) else {
        throw .name(
          "its refcounts are not all on the host file while it is attached: they are lazy, or an operation "
            + "has failed half-way: detach the image to check it")
      }
      return bytes
    } catch { throw .file(error) }
  }

  /// One look beside the guest.
  private static func look(
    _ image: DiskImage, _ context: JobContext<NoValue>
  ) async throws(JobError) -> CheckLook {
    try context.cancellation.check()
    let cancellation = context.cancellation
    return try await look(image.engine) { (setAside) throws(JobError) in
      CheckLook(try open(image), setAside) { cancellation.isCancelled }
    }
  }

  /// One look while the guest waits; nil if that takes too long.
  private func exact(
    _ image: DiskImage, _ context: JobContext<NoValue>
  ) async throws(JobError) -> CheckLook? {
    try context.cancellation.check()
    let (cancellation, patience) = (context.cancellation, patience)
    var isLate = false
    let look = try await Self.look(image.engine, keepsOut: true) { (setAside) throws(JobError) in
      let start = MonotonicClock.nanoseconds()
      return CheckLook(try Self.open(image), setAside) {
        isLate = MonotonicClock.nanoseconds() &- start >= patience
        return isLate || cancellation.isCancelled
      }
    }
    if case .failure(.cancelled) = look.result, isLate { return nil }
    return look
  }

  private static func look(
    _ engine: Image, keepsOut: Bool = false,
    _ body: ([Range<HostCluster>]) throws(JobError) -> CheckLook
  ) async throws(JobError) -> CheckLook {
    var look: Result<CheckLook, JobError>?
    func take(_ setAside: [Range<HostCluster>]) {
      do throws(JobError) { look = .success(try body(setAside)) } catch { look = .failure(error) }
    }
    do throws(ImageError) {
      if keepsOut { try await engine.inspect(take) } else { try await engine.observe(take) }
    } catch { throw .image(error) }
    guard let look else { throw .cancelled }
    return try look.get()
  }

  private static func result(_ look: CheckLook) throws(JobError) -> CheckResult {
    do throws(ToolError) { return try look.result.get() } catch {
      if case .cancelled = error { throw .cancelled }
      throw .file(error)
    }
  }

  // MARK: Findings that last

  private static func lasting(
    _ image: DiskImage, _ context: JobContext<NoValue>
  ) async throws(JobError) -> CheckResult {
    var candidates: [CheckFinding]?
    var looks = 0
    for _ in 0..<most {
      let look = try await look(image, context)
      let result = try result(look)
      if look.isCutShort {
        // So much is at work, or damage, that nothing can be compared.
        candidates = nil
        continue
      }
      looks = candidates == nil ? 1 : looks + 1
      let found = candidates.map { look.confirmed($0) } ?? look.findings
      let verdict = result.with(found)
      if verdict.exitCode == 0 { return tell(verdict, found, found.count, context) }
      candidates = found
      if looks < enough { continue }
      context.tell(.note("found \(looks) times in a row, while the device went on:"))
      return tell(verdict, found, found.count, context)
    }
    throw .file(
      .name(
        "each of \(most) looks beside the device has found more than \(CheckLook.most) things, which may be "
          + "changes under way: detach the image to check it"))
  }

  /// Tells findings, and returns the result.
  private static func tell(
    _ result: CheckResult, _ findings: [CheckFinding], _ count: Int, _ context: JobContext<NoValue>
  ) -> CheckResult {
    var notes = FindingNotes(repaired: nil, context.tell)
    for finding in findings { notes.add(finding) }
    notes.end(of: count)
    return result
  }
}
