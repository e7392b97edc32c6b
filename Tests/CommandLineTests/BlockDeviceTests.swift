import CPlatform
import Glibc
import TestTools
import Testing

/// A block device in use is not written by any command: it is refused with the name of the use.
///
/// Partitions, swap space and holders are tried in the VM, scripts/vm/tests/limits.
@Suite(.enabled(if: LoopDevice.canBeMade, "needs root and loop devices"), .serialized)
struct BlockDeviceTests {
  let directory: TemporaryDirectory
  let device: LoopDevice

  init() throws {
    directory = try TemporaryDirectory()
    device = try LoopDevice(in: directory)
  }

  /// Every command that writes; the device's path is put in the place of "DEV".
  static let writers = [
    "bench -w -c 8 -f raw DEV", "bench --mix 50 -c 100 -f raw DEV", "bench -w -c 8 DEV",
    "io -f raw -c write_0_4k DEV", "io -f qcow2 -c write_0_4k DEV", "add -f raw DEV", "add DEV",
    "create -f qcow2 DEV 1M", "create -f qcow2 -o data_file=DEV,data_file_raw=on IMAGE 1M",
    "check -f qcow2 -r all DEV", "check -f qcow2 -r leaks DEV",
  ]

  private func run(_ command: String) throws -> Outcome {
    let words = command.split(separator: " ").map {
      String($0).replacing("DEV", with: device.path).replacing("_0_4k", with: " 0 4k")
        .replacing("IMAGE", with: "\(directory.path)/image")
    }
    return try Subprocess(qublkPath(), words).finish()
  }

  private func expectRefusal(_ use: String) throws {
    let before = try device.bytes()
    for command in Self.writers {
      let outcome = try run(command)
      #expect(outcome.status != 0, "\(command)")
      let expected = command.contains("data_file") ? "block device is in use: " : use
      #expect(outcome.errors.contains(expected), "\(command): \(outcome.errors)")
      #expect(try device.bytes() == before, "\(command) has changed the device")
    }
  }

  @Test func aMountedDeviceIsNotWritten() throws {
    try device.makeFileSystem()
    let place = try device.mount()
    defer { device.unmount(place) }
    try expectRefusal("block device is in use: mounted on \(place): stop that first")
  }

  @Test func aDeviceThatAnotherProgramHasExclusivelyIsNotWritten() throws {
    let holder = try Subprocess("python3", ["-c", Self.holding, device.path])
    #expect(waitFor { isClaimed(device.path) })
    try expectRefusal("open in python3 (process \(holder.process)): stop that first")
    _ = holder.finish()
  }

  private static let holding = """
    import os, sys
    os.open(sys.argv[1], os.O_RDWR | os.O_EXCL)
    sys.stdin.read()
    """

  @Test(arguments: [
    "bench -c 8 -f raw DEV", "io -r -f raw -c read_0_4k DEV",
  ]) func readingAMountedDeviceIsAllowed(_ command: String) throws {
    try device.makeFileSystem()
    let place = try device.mount()
    defer { device.unmount(place) }
    let outcome = try run(command)
    #expect(outcome.status == 0, "\(outcome.errors)")
  }

  @Test func aFreeDeviceIsWrittenAgainAndAgain() throws {
    let commands = [
      "bench -w -c 100 -f raw DEV", "io -f raw -c write_0_4k DEV", "create -q -f qcow2 DEV 1M",
      "io -c write_0_4k DEV", "bench -w -c 100 --queues 2 DEV", "check -r all DEV",
    ]
    for command in commands + commands {
      let outcome = try run(command)
      #expect(outcome.status == 0, "\(command): \(outcome.errors)")
    }
  }

  /// A rebuild opens the image once more, beside the descriptor that has claimed the device.
  @Test func aDirtyImageOnADeviceIsRebuilt() throws {
    try #require(try run("create -q -f qcow2 -o lazy_refcounts=on DEV 1M").status == 0)
    try device.set(byte: 79, to: 1)
    let outcome = try run("io -c write_0_4k DEV")
    #expect(outcome.status == 0, "\(outcome.errors)")
    #expect(try device.bytes()[79] == 0)
  }
}

/// A loop device of 16 MiB, in a file of zeros.
final class LoopDevice {
  let path: String
  private let directory: TemporaryDirectory

  static let canBeMade = getuid() == 0 && access("/dev/loop-control", F_OK) == 0

  init(in directory: TemporaryDirectory) throws {
    self.directory = directory
    let file = try directory.file("disk", [])
    try #require(truncate(file, 16 << 20) == 0)
    let made = try CommandLineTests.run("losetup", "--find", "--show", file)
    try #require(made.status == 0, "\(made.errors)")
    path = String(made.output.dropLast())
  }

  deinit { _ = try? CommandLineTests.run("losetup", "--detach", path) }

  func makeFileSystem() throws {
    let made = try CommandLineTests.run("mkfs.ext4", "-q", "-F", path)
    try #require(made.status == 0, "\(made.errors)")
  }

  /// Mounts it so that not a byte changes by that.
  func mount() throws -> String {
    let place = "\(directory.path)/mnt"
    mkdir(place, 0o700)
    let made = try CommandLineTests.run("mount", "-o", "ro,noload", path, place)
    try #require(made.status == 0, "\(made.errors)")
    return place
  }

  func unmount(_ place: String) {
    _ = try? CommandLineTests.run("umount", place)
    rmdir(place)
  }

  /// What is on the device now.
  func bytes() throws -> [UInt8] {
    let descriptor = qublk_open_file(path, O_RDONLY, 0)
    try #require(descriptor >= 0)
    defer { close(descriptor) }
    var bytes = [UInt8](repeating: 0, count: 16 << 20)
    try #require(pread(descriptor, &bytes, bytes.count, 0) == bytes.count)
    return bytes
  }

  func set(byte offset: Int, to value: UInt8) throws {
    let descriptor = qublk_open_file(path, O_RDWR, 0)
    try #require(descriptor >= 0)
    defer { close(descriptor) }
    try #require(pwrite(descriptor, [value], 1, off_t(offset)) == 1)
  }
}

private func isClaimed(_ path: String) -> Bool {
  let descriptor = qublk_open_file(path, O_RDONLY | O_EXCL, 0)
  if descriptor >= 0 { close(descriptor) }
  return descriptor < 0 && errno == EBUSY
}

private func waitFor(_ condition: () -> Bool) -> Bool {
  for _ in 0..<500 {
    if condition() { return true }
    usleep(10_000)
  }
  return false
}
