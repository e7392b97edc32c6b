import BlockCore
import DiskImages
import Glibc
import HostFiles
import JSON
import QCOW2Engine
import TestTools
import Testing

@testable import Daemon

/// What a supervisor decides and tells, and the state by which a device comes back.
@Suite struct DeviceRecoveryTests {
  // MARK: Restarts

  @Test func aServerThatServedForAWhileIsFollowedAtOnce() {
    var policy = RestartPolicy()
    for _ in 0..<100 {
      let decision = policy.serverDied(served: 2, phase: .serving, isFinal: false)
      #expect(decision == .start(afterMilliseconds: 0))
    }
  }

  @Test func serversThatDieSoonAreFollowedLaterEachTimeAndThenNoMore() {
    var policy = RestartPolicy()
    let decisions = (0..<7).map { number in
      policy.serverDied(served: number % 2 == 0 ? 0.5 : nil, phase: .recovering, isFinal: false)
    }
    #expect(
      Array(decisions.prefix(5))
        == [0, 100, 200, 400, 800].map { RestartPolicy.Decision.start(afterMilliseconds: $0) })
    #expect(decisions[5] == .giveUp(.tooOften))
    #expect(decisions[6] == .giveUp(.tooOften))
    #expect(
      policy.serverDied(served: 60, phase: .serving, isFinal: false)
        == .start(afterMilliseconds: 0))
    #expect(policy.soonDeaths == 0)
  }

  @Test func aDeathAtTheLastChanceIsNotFollowed() {
    var policy = RestartPolicy()
    #expect(
      policy.serverDied(served: nil, phase: .fetching, isFinal: false) == .giveUp(.lastChance))
    #expect(policy.serverDied(served: nil, phase: .recovering, isFinal: true) == .giveUp(.final))
    // The file may be older than the message that it serves.
    #expect(
      policy.serverDied(served: 5, phase: .fetching, isFinal: false)
        == .start(afterMilliseconds: 0))
  }

  @Test func aSecondDeathByTheSandboxIsNotFollowedHoweverLate() {
    var policy = RestartPolicy()
    #expect(
      policy.serverDied(served: 0.1, phase: .serving, isFinal: false, isBreach: true)
        == .start(afterMilliseconds: 0))
    for _ in 0..<3 {
      #expect(
        policy.serverDied(served: 3600, phase: .serving, isFinal: false)
          == .start(afterMilliseconds: 0))
    }
    #expect(
      policy.serverDied(served: 3600, phase: .serving, isFinal: false, isBreach: true)
        == .giveUp(.breaches))
  }

  // MARK: Messages

  static let messages: [SupervisorMessage] = [
    .files, .lock, .device(id: 7, isRecoverable: true), .device(id: 0, isRecoverable: false),
    .serving, .failed("a: b", isFinal: false), .failed("", isFinal: true),
    .leaving(signal: -SIGTERM), .leaving(signal: SIGINT), .stop(number: 3, ifUnused: true),
    .stopped(number: 3, errno: 16),
  ]

  @Test(arguments: messages) func aMessageArrivesAsItWasSent(_ message: SupervisorMessage) {
    #expect(SupervisorMessage(message.text) == message)
  }

  @Test(arguments: [
    "", "Z", "D", "D1", "Dx 1", "D-1 1", "D99999999999 1", "Q1", "A1 99999999999", "T", "T9",
    "T-9223372036854775808",
  ])
  func otherTextsAreNoMessages(_ text: String) { #expect(SupervisorMessage(text) == nil) }

  // MARK: State

  private func request() -> AttachRequest {
    var disk = DiskImageOptions(path: "/a/\"b\".raw", name: "b.raw", readOnly: true)
    disk.engine.snapshot = .idOrName("s 1")
    disk.engine.workers = 3
    disk.engine.slotsPerWorker = 64
    disk.engine.dirtyAgeMilliseconds = 250
    disk.engine.cacheBytes = 1 << 20
    disk.mode = .buffered
    disk.granularity = 4096
    disk.locks = .ignored
    disk.detectZeroes = .unmap
    disk.backingFormats = [.raw, .qcow2]
    disk.backingPolicy = BackingPolicy(rules: [
      .sameDirectory, .below("/srv"), .ownersChoice([0, 1000]),
    ])
    disk.dataFile = "/data"
    disk.currentDirectory = .success("/home")
    return AttachRequest(
      path: "/real/b.raw", format: .raw, nullSize: 0, disk: disk, id: 4, queues: 3, depth: 64,
      isReadOnly: true, blockSize: 4096, zeroCopy: .off, zeroCopySlots: 9, batches: true,
      pollLimit: 70_000, scheduler: "kyber", dirtyAge: 250, printsJSON: false,
      noSpace: .hold(seconds: 5), hasSandbox: false, version: "1")
  }

  @Test func aRequestSurvivesTheWayThroughTheStateFile() throws {
    let stored = request().stored
    let parsed = try #require(JSONParser.parse(stored.text))
    let again = try #require(AttachRequest(stored: parsed, id: 4, version: "1"))
    #expect(again.stored == stored)
    #expect(again.recovery == .on)
    #expect(again.disk.engine.workers == 3)
    #expect(again.disk.engine.slotsPerWorker == 64)
    #expect(again.disk.engine.dirtyAgeMilliseconds == 250)
    #expect(again.disk.readOnly)
    #expect(!again.hasSandbox)
    #expect(again.disk.backingPolicy == request().disk.backingPolicy)
  }

  @Test func aStateWithARequestSurvivesToo() throws {
    var state = DeviceState(of: request(), DeviceName(id: 4), supervisor: 77)
    state.sandbox = ["seccomp"]
    state.recovery?.phase = .quiesced
    state.recovery?.reason = "six of \"them\"\nfailed"
    let parsed = try #require(JSONParser.parse(state.json.text))
    #expect(DeviceState(parsed) == state)
  }

  /// Every member is taken away, and replaced by values that it must not have.
  @Test func aStateFileThatIsNotWholeIsRefused() throws {
    let stored = request().stored
    let optional = ["zero-copy-slots", "scheduler"]
    for member in try #require(stored.members) where !optional.contains(member.name) {
      // Programs from before there was a sandbox did not store it.
      let isNewer = member.name == "sandbox"
      for value in [nil, .null, .array([]), .string("\u{0}"), .integer(.min)] as [JSONValue?]
      where !isNewer || value != nil {
        let changed = replacing(member.name, in: stored, by: value)
        let request = AttachRequest(stored: changed, id: 4, version: "1")
        #expect(request == nil, "\(member.name): \(value?.text ?? "gone")")
      }
    }
    let disk = try #require(stored["disk"])
    let optionalInDisk = [
      "directory", "snapshot", "cache-size", "data-file", "passphrases", "name",
    ]
    for member in try #require(disk.members) where !optionalInDisk.contains(member.name) {
      for value in [nil, .null, .object([]), .string("\u{0}"), .integer(-1)] as [JSONValue?] {
        let changed = replacing("disk", in: stored, by: replacing(member.name, in: disk, by: value))
        let request = AttachRequest(stored: changed, id: 4, version: "1")
        #expect(request == nil, "disk.\(member.name): \(value?.text ?? "gone")")
      }
    }
  }

  private func replacing(_ name: String, in object: JSONValue, by value: JSONValue?) -> JSONValue {
    .object(
      (object.members ?? []).compactMap { member in
        guard member.name == name else { return member }
        return value.map { JSONValue.Member(name, $0) }
      })
  }

  @Test func recoveryOfAnotherLayoutIsNone() throws {
    let state = DeviceState(of: request(), DeviceName(id: 4), supervisor: nil)
    let other = replacing("layout", in: try #require(state.recovery).json, by: .integer(2))
    let read = try #require(DeviceState(replacing("recovery", in: state.json, by: other)))
    #expect(read.recovery == nil)
  }
}
