import BlockCore
import Glibc
import JSON
import QCOW2Engine
import Testing

@testable import Daemon
@testable import qublk
@testable import Reports

/// What the daemon makes of events: lines of the log, a condition, members of JSON.
@Suite struct EventTests {
  private let object = HostObject(.image, path: "/a\nb.qcow2")
  private var error: ImageEvent {
    ImageEvent(.read, object, offset: HostOffset(0x50000), length: 4096, .io)
  }
  private var damage: ImageEvent {
    var event = ImageEvent(.damaged, object, problem: "L2 entry of guest cluster 5 is 0x42a00: bad")
    event.offset = HostOffset(0x40028)
    event.guest = GuestOffset(0x50000)
    event.consequence = .markedCorrupt
    return event
  }

  private func log(_ holds: Bool = false) -> EventLog {
    EventLog(device: DeviceName(id: 3), holdsRequests: holds)
  }

  private func text(_ lines: [EventLog.Line]) -> [String] { lines.map(\.text) }

  @Test func theFirstOfAKindIsToldAtOnceAndInOneLine() {
    let events = ImageEvents()
    events.report(error)
    events.report(damage)
    var log = log()
    let (lines, isBehind) = log.lines(for: events.summary, now: 100)
    #expect(
      text(lines) == [
        "/dev/ublkb3: image /a\\012b.qcow2: cannot read 4096 bytes at host offset 0x50000: Input/output "
          + "error (EIO): requests for this data fail: look after the host's storage",
        "/dev/ublkb3: image /a\\012b.qcow2: L2 entry of guest cluster 5 is 0x42a00: bad (at host offset "
          + "0x40028, guest offset 0x50000): the image is marked corrupt and nothing is changed any more; "
          + "the rest can be read: once it is detached, \"qublk check -r all /a\\012b.qcow2\" may repair "
          + "it; if that leaves errors, attach it with --read-only and copy the data off",
      ])
    #expect(!isBehind)
    #expect(log.lines(for: events.summary, now: 200).lines.isEmpty)
  }

  @Test func aMillionRepeatsTakeFewLines() {
    let events = ImageEvents()
    var log = log()
    var lines = 0
    for second in 0..<600 {
      for _ in 0..<100 { events.report(error) }
      lines += log.lines(for: events.summary, now: Double(second)).lines.count
    }
    #expect(lines <= 20)
    events.report(error)
    #expect(log.lines(for: events.summary, now: 600.5).isBehind)
    // All have been told in the end.
    #expect(
      text(log.lines(for: events.summary, now: 700).lines).last?.contains(
        "more (read_error), the last: image")
        == true)
    #expect(!log.lines(for: events.summary, now: 800).isBehind)
  }

  @Test func aLackOfSpaceIsToldAndItsEnd() {
    let events = ImageEvents()
    var full = ImageEvent(.spaceLacking, object)
    full.guest = GuestOffset(0x1000)
    events.report(full)
    var log = log()
    #expect(
      text(log.lines(for: events.summary, now: 1).lines) == [
        "/dev/ublkb3: image /a\\012b.qcow2: no space left on the host (guest offset 0x1000): requests that "
          + "need it fail with ENOSPC, and the guest sees a full disk: free space on the host; attached "
          + "with --on-enospc hold, requests wait for it"
      ])
    for _ in 0..<1000 { events.report(full) }
    #expect(log.lines(for: events.summary, now: 2).lines.isEmpty)
    #expect(log.lines(for: events.summary, now: 62).lines.count == 1)
    #expect(DeviceCondition(events.summary) == .full)
    events.report(ImageEvent(.spaceFound, object))
    #expect(
      text(log.lines(for: events.summary, now: 63).lines) == [
        "/dev/ublkb3: image /a\\012b.qcow2: the host has space again: requests succeed"
      ])
    #expect(DeviceCondition(events.summary) == .good)
    // To and fro: a pair of lines in ten seconds.
    var lines = 0
    for step in 0..<100 {
      events.report(full)
      lines += log.lines(for: events.summary, now: 63 + Double(step) / 10).lines.count
      events.report(ImageEvent(.spaceFound, object))
      lines += log.lines(for: events.summary, now: 63.05 + Double(step) / 10).lines.count
    }
    #expect(lines <= 4)
  }

  @Test func heldRequestsAreSaidToBeHeld() {
    let events = ImageEvents()
    events.report(ImageEvent(.spaceLacking, object))
    var log = log(true)
    #expect(
      log.lines(for: events.summary, now: 1).lines.first?.text.hasSuffix(
        "no space left on the host: requests are held until there is") == true)
  }

  @Test func theWorstIsTheCondition() {
    let events = ImageEvents()
    #expect(DeviceCondition(events.summary) == .good)
    #expect(log().trouble(of: events.summary) == nil)
    events.report(error)
    #expect(DeviceCondition(events.summary) == .failing)
    events.report(ImageEvent(.spaceLacking, object))
    #expect(DeviceCondition(events.summary) == .full)
    events.report(damage)
    #expect(DeviceCondition(events.summary) == .damaged)
    #expect(log().trouble(of: events.summary)?.contains("L2 entry of guest cluster 5") == true)
    events.report(ImageEvent(.sync, object, offset: HostOffset(0), length: 0, .io))
    #expect(DeviceCondition(events.summary) == .syncFailed)
    #expect(log().trouble(of: events.summary)?.contains("qublk del --force /dev/ublkb3") == true)
  }

  @Test func theKeysOfEventsAreStable() throws {
    let events = ImageEvents()
    events.report(damage)
    events.report(error)
    guard case .array(let all) = events.summary.json, all.count == 2 else {
      Issue.record("not two events")
      return
    }
    #expect(all.map { $0["kind"]?.string } == ["read_error", "damage"])
    guard case .object(let members) = all[1], case .object(let first) = all[1]["first"] else {
      Issue.record("no objects")
      return
    }
    #expect(members.map(\.name) == ["kind", "count", "first", "last"])
    #expect(
      first.map(\.name) == [
        "time", "file", "role", "operation", "offset", "length", "guest_offset", "errno", "text",
      ])
    #expect(all[1]["first"]?["file"]?.string == "/a\nb.qcow2")
    #expect(all[0]["last"]?["errno"]?.integer == 5)
    #expect(all[0]["last"]?["operation"]?.string == "read")
  }

  @Test func aConditionSurvivesTheStateFileAndShowsInTheList() throws {
    var state = DeviceState(
      id: 7, image: "/a\nb", imageDevice: 1, imageInode: 5, process: 123, boot: "b",
      version: "0.1.0", queues: 2, depth: 128, size: 1 << 30, isReadOnly: false, started: 1)
    state.condition = .damaged
    state.trouble = "an entry"
    let parsed = try #require(JSONParser.parse(state.json.text).flatMap(DeviceState.init))
    #expect(parsed == state)
    var device = ListedDevice(
      name: DeviceName(id: 7), state: .live, qublk: state, size: 1 << 30, queues: 2, depth: 128,
      process: 123)
    #expect(
      ListCommand.table([device]) == """
        ID  DEVICE       STATE    SIZE   QUEUES  PID  IMAGE
        7   /dev/ublkb7  damaged  1 GiB  2x128   123  /a\\012b

        """)
    device.state = .dead
    #expect(device.stateText == "dead")
  }

  @Test func unprintableCharactersAreWrittenInOctal() {
    #expect(printable("/plain ü name") == "/plain ü name")
    #expect(printable("a\nb\tc\\d\u{7f}\u{1b}[0m") == "a\\012b\\011c\\134d\\177\\033[0m")
    #expect(printable("\u{85}\u{2028}") == "\\302\\205\\342\\200\\250")
    #expect(printable("\r\n") == "\\015\\012")
  }
}
