package import BlockCore
package import DiskImages
import Glibc
import HostFiles
package import Uring

/// The interpreter of `qublk io`: one thread, one ring, one worker of the engine.
///
/// Commands run one after the other; what `aio_read` and `aio_write` start goes on beside them.
@safe
package final class Workbench: CompletionHandler, @unchecked Sendable {
  // why: confined to its loop's thread

  let loop: WorkerLoop
  var disk: IODisk?
  var hasQuit = false
  /// Any command has failed.
  private(set) var hasFailed = false
  /// Asynchronous requests that have not ended.
  private var outstanding = 0
  private var drainWaiters: [UnsafeContinuation<Void, Never>] = unsafe []
  private var isMaintaining = false
  private var maintenanceWaiter: UnsafeContinuation<Void, Never>?
  private var tasks = 0

  private let secrets: [ObjectSecret]

  private init(_ secrets: [ObjectSecret]) throws(Errno) {
    self.secrets = secrets
    loop = try WorkerLoop(entries: 256, completions: 4096)
  }

  /// What to run: opens, then runs the commands given or those of standard input.
  package struct Script: Sendable {
    var opening: DiskOpening?
    var commands: [String]
    /// What images can be unlocked with.
    var secrets: [ObjectSecret]

    /// What to open, the commands, and what images can be unlocked with.
    package init(opening: DiskOpening?, commands: [String], secrets: [ObjectSecret]) {
      self.opening = opening
      self.commands = commands
      self.secrets = secrets
    }
  }

  /// Runs a script on this thread.
  ///
  /// - Returns: whether everything succeeded.
  package static func run(_ script: Script) throws(Errno) -> Bool {
    let bench = try Workbench(script.secrets)
    bench.spawn { await bench.run(script) }
    bench.spawn { await bench.maintain() }
    bench.loop.run(bench)
    bench.loop.leaveThread()
    return !bench.hasFailed
  }

  /// The bench's own completions are operations of the loop: none comes here.
  package func complete(_ userData: UserData, result: Int32) {}

  /// Nothing is left to do.
  package var isFinished: Bool { tasks == 0 && loop.operationsInFlight == 0 }

  private func spawn(_ body: @escaping @Sendable () async -> Void) {
    tasks += 1
    Task(executorPreference: loop.executor) {
      await body()
      self.tasks -= 1
    }
  }

  // MARK: The script

  private func run(_ script: Script) async {
    await runCommands(of: script)
    if disk != nil { await attempt { () async throws(IOFailure) in try await self.close() } }
    loop.endSleeps()
  }

  private func runCommands(of script: Script) async {
    if let opening = script.opening {
      await attempt { () async throws(IOFailure) in try await self.open(opening) }
      if hasFailed { return }
    }
    if !script.commands.isEmpty {
      for command in script.commands where !hasQuit { await run(command) }
      return
    }
    let lines = IOLines(loop)
    while !hasQuit {
      do throws(IOFailure) {
        guard let line = try await lines.next() else { return }
        await run(line)
      } catch { fail(error) }
    }
  }

  private func run(_ line: String) async {
    await attempt { () async throws(IOFailure) in
      guard let (command, name, words) = try IOCommandSpec.find(in: line) else { return }
      if command.needsFile && self.disk == nil { throw .noFile }
      try command.checkCount(words.count, calledAs: name)
      if command.needsWriting, self.disk?.opening.isReadOnly == true { throw .readOnly }
      try await self.perform(try command.parse(words, command))
    }
  }

  private func attempt(_ body: () async throws(IOFailure) -> Void) async {
    do throws(IOFailure) { try await body() } catch { fail(error) }
  }

  private func fail(_ failure: IOFailure) {
    hasFailed = true
    tell(failure)
  }

  func tell(_ failure: IOFailure) {
    let lines = failure.lines
    if let errors = lines.errors { IOOutput.complain(errors + "\n") }
    if let output = lines.output { IOOutput.write(output + "\n") }
  }

  // MARK: Asynchronous requests

  /// Carries out `body` beside the commands; a failure is told and is none of the command's.
  func start(_ body: @escaping @Sendable () async throws(IOFailure) -> Void) {
    outstanding += 1
    spawn { [self] in
      do throws(IOFailure) { try await body() } catch { tell(error) }
      outstanding -= 1
      if outstanding == 0 { wakeDrainers() }
    }
  }

  private func wakeDrainers() {
    let woken = unsafe drainWaiters
    unsafe drainWaiters = unsafe []
    unsafe woken.forEach { unsafe $0.resume() }
  }

  /// Waits until no asynchronous request is left.
  func drain() async {
    while outstanding > 0 {
      unsafe await withUnsafeContinuation { unsafe drainWaiters.append($0) }
    }
  }

  // MARK: Open and close

  func open(_ opening: DiskOpening) async throws(IOFailure) {
    if disk != nil { throw .fileOpen }
    disk = try await IODisk.open(opening, secrets)
  }

  func close() async throws(IOFailure) {
    guard let disk else { throw .noFile }
    await drain()
    self.disk = nil
    if isMaintaining {
      unsafe await withUnsafeContinuation { unsafe maintenanceWaiter = unsafe $0 }
    }
    do throws(DiskImageError) { try await disk.close() } catch { throw .open(error) }
  }

  /// The engine's background work, for as long as the bench runs.
  private func maintain() async {
    while await loop.sleep(milliseconds: 100) {
      guard let disk else { continue }
      isMaintaining = true
      await disk.maintain()
      isMaintaining = false
      unsafe maintenanceWaiter?.resume()
      unsafe maintenanceWaiter = nil
    }
  }
}

/// Standard output and standard error, unbuffered so that they keep their order.
package enum IOOutput {
  // Where that fails, there is nowhere left to complain.

  static func write(_ text: String) { _ = writeAll(STDOUT_FILENO, text) }

  /// Writes to standard error.
  package static func complain(_ text: String) { _ = writeAll(STDERR_FILENO, text) }
}
