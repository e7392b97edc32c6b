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

  @Test func aStateFromBeforeTheControlProtocolSaysSo() throws {
    let text = """
      { "layout": 1, "id": 9, "image": "/x", "image-device": "1", "image-inode": "2", "pid": 1,
        "boot-id": "b", "version": "0.1.0", "queues": 1, "depth": 8, "size": "512", "read-only": false,
        "started": 5 }
      """
    let state = try #require(JSONParser.parse(text).flatMap(DeviceState.init))
    #expect(state.controlVersion == nil)
    let error = CommandError.otherVersion(DeviceName(id: 9), process: state.process)
    #expect(
      error.text == "ublkb9: its daemon is of another version of qublk than this one: "
        + "end it with \"kill 1\" once nobody uses the device")
  }

  @Test func aStateOfAnotherLayoutIsNotRead() throws {
    let parsed = try #require(JSONParser.parse("{ \"layout\": 2, \"id\": 1 }"))
    #expect(DeviceState(parsed) == nil)
  }

  @Test func mountPointsAreUnescaped() {
    #expect(MountTable.unescaped("/a\\040b\\134c\\011") == "/a b\\c\t")
    #expect(MountTable.unescaped("/tail\\04") == "/tail\\04")
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
