import BlockCore
import CPlatform
import DiskImages
import Glibc
import HostFiles
import ImageJobs
import JSON
import Logging
import QCOW2Tools
import Synchronization
import Uring

/// Runs jobs on the image of a running device, beside the guest's requests.
///
/// Each job has a thread with a ring of its own. In the engine it has worker numbers that no queue has:
/// see `JobSlots` there.
final class LiveHost: Sendable {
  /// More than a person watches; each takes a thread and two descriptors.
  static let limit = 4

  /// The jobs that a running device takes.
  private static let diskJobs: [any DiskJob.Type] = [
    MapJob.self, MeasureJob.self, LiveCheckJob.self, ResizeJob.self, SnapshotCreateJob.self,
    SnapshotDeleteJob.self, BitmapJob.self, LiveAmendJob.self,
  ]
  private static let fileJobs: [any FileJob.Type] = [InfoJob.self, SnapshotListJob.self]

  private struct State {
    var running: [(job: LiveJob, thread: WorkerThread)] = []
    var lastID = 0
    /// The daemon's own, beside those of clients.
    var leaks: LeakReturn?
    /// What is told when the disk gets another size; nil before there is a device.
    var capacity: (any DeviceCapacity)?
    /// The device ends: no job may touch the image any more.
    var isOver = false
  }

  /// Readable when a job has something for its client.
  let descriptor: Int32
  private let disk: any OpenDisk
  /// What the image is known by.
  private let path: String
  /// The process will be in a sandbox, which keeps jobs from opening files by name.
  private let isConfined: Bool
  private let state = Mutex(State())

  /// Serves the jobs of a disk.
  ///
  /// - Throws: The errno of eventfd(2).
  init(_ disk: any OpenDisk, path: String, isConfined: Bool = false) throws(Errno) {
    self.disk = disk
    self.path = path
    self.isConfined = isConfined
    descriptor = qublk_eventfd()
    if descriptor < 0 { throw Errno(-descriptor) }
  }

  deinit { close(descriptor) }

  /// Says which device shows the disk; call before the first job.
  func serve(_ capacity: any DeviceCapacity) { state.withLock { $0.capacity = capacity } }

  /// Whether a running device has a job of this name.
  static func knows(_ name: String) -> Bool {
    diskJobs.contains { $0.name == name } || fileJobs.contains { $0.name == name }
  }

  // MARK: The control thread's side

  /// Starts a job.
  ///
  /// - Throws: Why not, as the client is told.
  func start(_ name: String, _ arguments: JSONValue?) throws(ControlError) -> LiveJob {
    let body: Body?
    do throws(JobError) { body = try self.body(name, arguments) } catch {
      throw ControlError(error)
    }
    guard let body else { throw ControlError(.unknownRequest, "unknown request \"\(name)\"") }
    return try state.withLock { (state) throws(ControlError) in
      if state.isOver { throw ControlError(.gone, "the device is gone") }
      guard state.running.count < Self.limit else {
        throw ControlError(.busy, "\(Self.limit) jobs run already")
      }
      let job = LiveJob(id: state.lastID + 1, name: name) { [descriptor] in
        var one: UInt64 = 1
        _ = unsafe write(descriptor, &one, 8)
      }
      state.running.append((job, try Self.thread(job, body)))
      state.lastID += 1
      return job
    }
  }

  private static func thread(
    _ job: LiveJob, _ body: @escaping Body
  ) throws(ControlError) -> WorkerThread {
    do throws(Errno) {
      return try WorkerThread(name: "qublk-job", stackBytes: 4 << 20) {
        do throws(JobError) { job.end(.result(try body(job))) } catch {
          job.end(.error(ControlError(error)))
        }
      }
    } catch { throw ControlError(.busy, "cannot start a thread: \(error)\(error.threadHint)") }
  }

  /// The jobs that run: an array.
  var list: JSONValue {
    .array(
      state.withLock { state in
        let jobs = (state.leaks.map { [$0.live] } ?? []) + state.running.map(\.job)
        return jobs.filter { !$0.hasEnded }.map(\.json)
      })
  }

  /// Gives back, beside the guest, what a session that died has left reserved; call once.
  ///
  /// - Parameters:
  ///   - name: Of the device, for messages.
  ///   - reason: Why there may be leaks, in words.
  ///   - noteSettled: Called when nothing is leaked any more, by another thread.
  func returnLeaks(
    of name: String, _ reason: String, noteSettled: @escaping @Sendable () -> Void
  ) {
    state.withLock { state in
      if state.isOver { return }
      do throws(Errno) {
        state.lastID += 1
        state.leaks = try LeakReturn(
          of: disk, id: state.lastID, name, reason, noteSettled: noteSettled)
      } catch {
        Log.logger.warning("\(name): leaked clusters stay: cannot start a thread: \(error)")
      }
    }
  }

  /// Call when ``descriptor`` is readable: lets go of the threads of jobs that have ended.
  func noteNews() {
    var count: UInt64 = 0
    _ = unsafe read(descriptor, &count, 8)
    let ended = state.withLock { state in
      let ended = state.running.filter(\.job.hasEnded)
      state.running.removeAll(where: \.job.hasEnded)
      return ended
    }
    for (_, thread) in ended { thread.join() }
  }

  /// Ends all jobs, and takes no more; when it returns, none touches the image.
  ///
  /// The return of leaks has a moment to come to its end.
  func finish() {
    let (running, leaks) = state.withLock { state in
      state.isOver = true
      defer { (state.running, state.leaks) = ([], nil) }
      return (state.running, state.leaks)
    }
    for (job, _) in running { job.cancellation.cancel() }
    for (_, thread) in running { thread.join() }
    leaks?.finish()
  }

  // MARK: The job's side

  private typealias Body = @Sendable (LiveJob) throws(JobError) -> JSONValue

  private func body(_ name: String, _ arguments: JSONValue?) throws(JobError) -> Body? {
    if let type = Self.diskJobs.first(where: { $0.name == name }) {
      return try body(of: type, arguments)
    }
    guard let type = Self.fileJobs.first(where: { $0.name == name }) else { return nil }
    return try body(of: type, arguments)
  }

  private func body<Job: DiskJob>(
    of type: Job.Type, _ arguments: JSONValue?
  ) throws(JobError) -> Body {
    let job = try Self.job(type, arguments)
    if isConfined, let file = job.openedByName {
      throw .arguments(
        "\(printable(file)): a daemon in its sandbox opens no file by name: add the device with --sandbox off, "
          + "or detach the image first")
    }
    let capacity = state.withLock { $0.capacity }
    return { [disk] (live) throws(JobError) in
      var context = live.context(of: Job.Item.self)
      context.capacity = capacity
      return try JobLoop.run { [context] _ async throws(JobError) in
        try await job.run(on: disk, context).json
      }
    }
  }

  private func body<Job: FileJob>(
    of type: Job.Type, _ arguments: JSONValue?
  ) throws(JobError) -> Body {
    let job = try Self.job(type, arguments)
    return { [disk, path] (live) throws(JobError) in
      guard let image = disk.files.first else { throw .format(needed: .qcow2) }
      let context = live.context(of: Job.Item.self)
      let bytes: FileBytes
      // The device has the locks.
      do throws(ToolError) {
        let reader: Int32
        do throws(Errno) { reader = try image.reader() } catch { throw .host(.open, errno: error) }
        bytes = try FileBytes(adopting: reader)
      } catch { throw .file(error) }
      let file = ImageFile(bytes, path: path)
      return try runBlocking { () async throws(JobError) in
        try await job.run(on: file, context).json
      }
    }
  }

  private static func job<Job: ImageJob>(
    _ type: Job.Type, _ value: JSONValue?
  ) throws(JobError) -> Job {
    var arguments = try JobArguments(value)
    let job = try Job(&arguments)
    try arguments.finish()
    return job
  }
}
