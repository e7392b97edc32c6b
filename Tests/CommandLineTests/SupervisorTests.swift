import BlockCore
import CPlatform
import Glibc
import HostFiles
import TestTools
import Testing

@testable import Daemon

/// A supervisor of real processes, whose servers serve nothing (Tests/supervised).
@Suite(.enabled(if: getuid() == 0, "needs root, for /run/qublk")) struct SupervisorTests {
  /// A run of the program, with what it has left.
  private final class Fixture {
    let directory: TemporaryDirectory
    let image: String
    let log: String
    let state: StateDirectory
    let supervisor: pid_t

    init(_ number: UInt32) throws {
      directory = try TemporaryDirectory()
      image = try directory.file("disk.raw", Array(repeating: 0, count: 65536))
      log = "\(directory.path)/log"
      // Numbers that no device of the machine gets.
      state = StateDirectory(id: 1_000_000 + UInt32(getpid()) % 1000 * 10 + number)
      let program = try qublkPath()
      // Who prints to it may outlive it, so its output is not waited for.
      supervisor = try Subprocess(
        "\(program.dropLast("qublk".count))supervised", [image, "\(state.id)", log]
      ).process
    }

    deinit {
      for server in servers { kill(server.process, SIGKILL) }
      kill(supervisor, SIGKILL)
      state.remove()
    }

    struct Server: Equatable {
      let word: String
      let process: Int32
      let files: String
    }

    var servers: [Server] {
      smallFile(log).split(separator: "\n").compactMap { line in
        let words = line.split(separator: " ").map(String.init)
        guard words.count == 3, let process = Int32(words[1]) else { return nil }
        return Server(word: words[0], process: process, files: words[2])
      }
    }

    func server(_ number: Int) throws -> Server {
      _ = wait(seconds: 20) { servers.count >= number }
      return try #require(servers.count >= number ? servers[number - 1] : nil)
    }

    /// Whether a server has been told to end, and has not.
    func wasTold(_ server: Server) -> Bool {
      wait(seconds: 20) { smallFile(log).contains("told \(server.process)\n") }
    }

    /// The supervisor's exit status, or minus the signal that ended it; nil if it does not end.
    func end() -> Int32? {
      var status: Int32 = 0
      guard wait(seconds: 20, until: { waitpid(supervisor, &status, WNOHANG) == supervisor })
      else { return nil }
      let signal = qublk_wait_signal(status)
      return signal == 0 ? qublk_wait_exit(status) : -signal
    }

    /// Whether another program may write the image now.
    var isFree: Bool {
      let descriptor = open(image, O_RDWR)
      defer { close(descriptor) }
      do throws(ImageLockError) { try ImageLock.probe(.writer, descriptor: descriptor) } catch {
        return false
      }
      return true
    }
  }

  @Test func aDeadServerIsFollowedAndTheImageIsNeverFree() throws {
    let fixture = try Fixture(0)
    let first = try fixture.server(1)
    #expect(first.word == "new" && first.files == "locked")
    #expect(!fixture.isFree)
    kill(first.process, SIGKILL)
    let end = Deadline(seconds: 20)
    while fixture.servers.count < 2, !end.hasPassed { #expect(!fixture.isFree) }
    let second = try fixture.server(2)
    #expect(second.word == "again" && second.files == "held")
    #expect(second.process != first.process)
    #expect(fixture.state.hasDaemon)
    #expect(fixture.state.read()?.process == second.process)
    #expect(fixture.state.read()?.supervisor == fixture.supervisor)
    kill(second.process, SIGTERM)
    #expect(fixture.end() == 0)
    #expect(fixture.isFree)
    #expect(!fixture.state.hasDaemon)
  }

  @Test func aSignalToTheSupervisorReachesTheServer() throws {
    let fixture = try Fixture(1)
    let server = try fixture.server(1)
    kill(fixture.supervisor, SIGTERM)
    #expect(fixture.end() == 0)
    #expect(kill(server.process, 0) < 0)
    #expect(fixture.servers.count == 1)
  }

  @Test("An order to end outlives the server that waits for its users", arguments: [false, true])
  func anOrderToEndOutlivesTheServerThatWaitsForItsUsers(onlyTheServerGotIt: Bool) throws {
    let fixture = try Fixture(onlyTheServerGotIt ? 7 : 5)
    let first = try fixture.server(1)
    _ = try fixture.directory.file("disk.raw.used", [])
    kill(onlyTheServerGotIt ? first.process : fixture.supervisor, SIGTERM)
    #expect(fixture.wasTold(first))
    kill(first.process, SIGKILL)
    let second = try fixture.server(2)
    #expect(fixture.wasTold(second))
    #expect(unlink("\(fixture.image).used") == 0)
    kill(second.process, SIGKILL)
    // The third is told, and nobody uses the device any more.
    #expect(fixture.end() == 0)
    #expect(try fixture.server(3).word == "again")
  }

  @Test func anOrderToEndThatFindsNoServerReachesTheNext() throws {
    let fixture = try Fixture(6)
    // Deaths in a row, so that there is a pause before the next start.
    for number in 1...4 { kill(try fixture.server(number).process, SIGKILL) }
    let isWaiting = wait(seconds: 20) { fixture.state.read()?.recovery?.phase == .recovering }
    #expect(isWaiting)
    kill(fixture.supervisor, SIGTERM)
    #expect(fixture.end() == 0)
    #expect(fixture.servers.count == 5)
    #expect(!fixture.state.hasDaemon)
    #expect(fixture.isFree)
  }

  @Test func aServerOutlivesItsSupervisor() throws {
    let fixture = try Fixture(2)
    let server = try fixture.server(1)
    kill(fixture.supervisor, SIGKILL)
    #expect(fixture.end() == -SIGKILL)
    #expect(kill(server.process, 0) == 0)
    #expect(!fixture.isFree)
    #expect(fixture.state.hasDaemon)
    kill(server.process, SIGTERM)
    #expect(wait(seconds: 20) { fixture.isFree })
  }

  @Test func aSecondServerThatTheSandboxKillsIsTheLast() throws {
    let fixture = try Fixture(4)
    for number in 1...2 { kill(try fixture.server(number).process, Int32(QUBLK_BREACH_SIGNAL)) }
    let isOver = wait(seconds: 20) { fixture.state.read()?.recovery?.phase == .quiesced }
    #expect(isOver)
    let reason = fixture.state.read()?.recovery?.reason ?? ""
    #expect(
      reason.hasPrefix("the sandbox has killed 2 daemons: the daemon ended: killed by SIGSYS: "),
      "\(reason)")
    #expect(!fixture.isFree)
    kill(fixture.supervisor, SIGTERM)
    #expect(fixture.end() == 0)
  }

  @Test func serversThatFailLeaveTheDeviceToAPersonAndTheImageToNobody() throws {
    let fixture = try Fixture(3)
    let server = try fixture.server(1)
    _ = try fixture.directory.file("disk.raw.broken", [])
    kill(server.process, SIGKILL)
    let isOver = wait(seconds: 20) { fixture.state.read()?.recovery?.phase == .quiesced }
    #expect(isOver)
    let reason = fixture.state.read()?.recovery?.reason ?? ""
    #expect(reason.hasPrefix("6 daemons in a row ended soon, the last one so: "), "\(reason)")
    #expect(!fixture.isFree)
    #expect(fixture.servers.count == 1)
    kill(fixture.supervisor, SIGTERM)
    #expect(fixture.end() == 0)
    #expect(fixture.isFree)
    // What a person needs stays.
    #expect(fixture.state.read()?.recovery?.reason == reason)
  }
}
