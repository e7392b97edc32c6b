import BlockCore
import CProbes
import Glibc
import Synchronization
import Uring

@testable import Daemon

/// A process in the sandbox of a daemon, for SandboxTests and for measuring.
///
///     confined try [free] [lacking] [before] NAME
///                                     does what must not be possible; prints 0 or the errno
///     confined jobs IMAGE             runs all jobs that a running device takes
///     confined serve on|off read|write COUNT IMAGE
///
/// `free` leaves the sandbox out. `lacking` plays a kernel without Landlock, and prints what is in force.
/// `before` has a thread do it that was there before the sandbox.
@main
struct Confined {
  static func main() throws {
    let words = Array(CommandLine.arguments.dropFirst())
    switch words.first {
    case "try": try attempt(Array(words.dropFirst()))
    case "jobs" where words.count == 2: try ConfinedJobs.run(on: words[1])
    case "serve" where words.count == 5:
      guard let count = UInt64(words[3]) else { usage() }
      try ConfinedServing.run(words[2], count, words[4], isConfined: words[1] == "on")
    default: usage()
    }
  }

  private static func usage() -> Never {
    print(
      "usage: confined try [free] [lacking] [before] NAME | jobs IMAGE | serve on|off read|write COUNT IMAGE"
    )
    exit(64)
  }

  /// Enters the sandbox as a daemon does: `threads` starts what there is between its two steps.
  ///
  /// - Returns: What is in force.
  @discardableResult
  static func enter(
    _ places: [Sandbox.Place], threads: () throws -> Void = {}
  ) throws -> [Sandbox.Part] {
    var sandbox = Sandbox()
    try sandbox.giveUpRights()
    try threads()
    try sandbox.close(to: places)
    return sandbox.parts
  }

  private static func attempt(_ words: [String]) throws {
    let name = words.last ?? ""
    let isBefore = words.contains("before")
    let mayStart = Atomic(false)
    nonisolated(unsafe) var thread: WorkerThread?
    let body: @Sendable () -> Void = {
      while !mayStart.load(ordering: .acquiring) { usleep(1000) }
      tell(name)
    }
    func start() throws { if isBefore { thread = try WorkerThread(name: "before", body) } }
    let isLacking = words.contains("lacking")
    if isLacking, lack_landlock() != 0 { throw Errno.io }
    if words.contains("free") {
      try start()
    } else {
      let parts = try enter([], threads: start)
      if isLacking { say(parts.map(\.rawValue).joined(separator: " ")) }
    }
    mayStart.store(true, ordering: .releasing)
    if let thread { thread.join() } else { tell(name) }
  }

  private static func tell(_ name: String) { say("\(try_forbidden(name))") }

  private static func say(_ line: String) {
    let text = line + "\n"
    _ = write(STDOUT_FILENO, text, text.utf8.count)
  }
}
