import HostFiles
import JSON
import Testing

@testable import Daemon
@testable import qublk
@testable import Reports

@Suite struct TextTests {
  @Test(arguments: ["3", "ublkb3", "/dev/ublkb3", "/dev/ublkc3"])
  func aDeviceHasSeveralNames(_ name: String) {
    #expect(DeviceName(argument: name)?.id == 3)
  }

  @Test(arguments: [
    "", "x", "-1", "+1", "ublkb", "/dev/sda", "1048576", "٣", "3p1", "/dev/ublkb3/",
  ])
  func otherNamesAreNone(_ name: String) { #expect(DeviceName(argument: name) == nil) }

  @Test func stateSurvivesTheWayThroughText() throws {
    let state = DeviceState(
      id: 7, image: "/a b/\"quoted\"\\\n\u{1}ü.qcow2", imageDevice: .max, imageInode: 5,
      process: 123, boot: "b", version: "0.1.0", queues: 2, depth: 128, size: .max,
      isReadOnly: true, started: 1_700_000_000)
    let parsed = try #require(JSONParser.parse(state.json.text))
    #expect(DeviceState(parsed) == state)
  }

  @Test(arguments: [
    "", "{", "{\"a\"", "{\"a\":}", "[1,", "[1 2]", "\"\\u12", "\"\\", "nul", "1 2",
    "99999999999999999999",
    String(repeating: "[", count: 100_000),
  ])
  func brokenJSONIsNoValue(_ text: String) { #expect(JSONParser.parse(text) == nil) }

  @Test func aStateOfAnotherLayoutIsNotRead() throws {
    let parsed = try #require(JSONParser.parse("{ \"layout\": 2, \"id\": 1 }"))
    #expect(DeviceState(parsed) == nil)
  }

  @Test func mountPointsAreUnescaped() {
    #expect(MountTable.unescaped("/a\\040b\\134c\\011") == "/a b\\c\t")
    #expect(MountTable.unescaped("/tail\\04") == "/tail\\04")
  }

  @Test func repliesSurviveTheWayThroughText() {
    let replies = [ControlReply.done, .gone, .refused("busy: a; b"), .failed("two\nlines \\ \"\t")]
    for reply in replies {
      #expect(ControlReply(reply.line) == reply)
      #expect(!reply.line.contains("\n"))
    }
    #expect(ControlReply("") == nil)
  }

  @Test func theTableIsAsWideAsItsTexts() {
    let device = ListedDevice(
      name: DeviceName(id: 10), state: .dead, qublk: nil, size: 1 << 30, queues: 2, depth: 64,
      process: nil)
    #expect(
      ListCommand.table([device]) == """
        ID  DEVICE        STATE  SIZE   QUEUES  PID  IMAGE
        10  /dev/ublkb10  dead   1 GiB  2x64    -    -

        """)
  }
}
