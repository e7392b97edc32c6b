import Testing

@testable import Daemon

/// The names by which users of a device are found once the driver has forgotten its number.
@Suite struct UserSearchTests {
  private let search = UserSearch(DeviceName(id: 1))

  @Test(arguments: [
    "/dev/ublkb1", "ublkb1", "/dev/ublkb1p1", "/dev/ublkb1p12", "/dev/ublkb1 (deleted)",
    "/dev/ublkb1p1 (deleted)", "/srv/chroot/dev/ublkb1",
  ])
  func `the disk and its partitions`(_ path: String) { #expect(search.isOurs(path: path)) }

  @Test(arguments: [
    "", "/", "/dev/ublkb10", "/dev/ublkb10p1", "/dev/ublkb1p", "/dev/ublkb1px", "/dev/ublkb1-part1",
    "/dev/ublkc1", "/dev/ublkb1/x", "/dev/xublkb1", "/dev/ublkb1 (deleted) ", "/dev/ublkb1p1p1",
  ])
  func `others`(_ path: String) { #expect(!search.isOurs(path: path)) }

  @Test func `an ordinary device has no users`() {
    #expect(DeviceUse.find(DeviceName(id: 1_000_001)) == nil)
  }

  @Test func `a dead device in use says how to go on`() {
    let name = DeviceName(id: 1)
    let error = CommandError.deadInUse(name, .mounted("/m"))
    #expect(
      error.text
        == "/dev/ublkb1: its daemon is gone, but it is mounted on /m: umount /m (or umount -l /m), then delete it again"
    )
  }
}
