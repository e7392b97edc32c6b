import BlockCore
import CPlatform
import Glibc
import HostFiles
import TestTools
import Testing

/// Locks against the real QEMU tools, in both directions [SEC-6].
@Suite(.enabled(if: hasQEMU, "needs qemu-img and qemu-io")) struct LockTests {
  let directory: TemporaryDirectory
  let image: String

  init() throws {
    directory = try TemporaryDirectory()
    image = try directory.image("a.qcow2")
  }

  /// A new open file description of the image.
  private func open(writable: Bool = true) throws -> Int32 {
    let descriptor = qublk_open_file(image, writable ? O_RDWR : O_RDONLY, 0)
    try #require(descriptor >= 0)
    return descriptor
  }

  /// A qemu-io that has the image open and waits for its input to end.
  private func holder(_ options: String...) throws -> Subprocess {
    let holder = try Subprocess("qemu-io", options + [image])
    let descriptor = try open()
    defer { close(descriptor) }
    for _ in 0..<1000 {
      do throws(ImageLockError) {
        try ImageLock.probe(.writer, descriptor: descriptor)
        usleep(10_000)
      } catch { break }
    }
    return holder
  }

  @Test(arguments: [["info"], ["check"], ["resize", "+1M"], ["snapshot", "-c", "s"]])
  func aWriterKeepsQEMUOut(_ words: [String]) throws {
    let descriptor = try open()
    defer { close(descriptor) }
    try ImageLock.acquire(.writer, descriptor: descriptor)
    let arguments = words[0] == "resize" ? ["resize", image, "+1M"] : words + [image]
    let outcome = try Subprocess("qemu-img", arguments).finish()
    #expect(outcome.status != 0)
    #expect(outcome.errors.contains("Failed to get "))
    #expect(outcome.errors.contains("lock"))
  }

  @Test func qemuMayLookAtAWritersImageIfItInsists() throws {
    let descriptor = try open()
    defer { close(descriptor) }
    try ImageLock.acquire(.writer, descriptor: descriptor)
    #expect(try run("qemu-img", "info", "-U", image).status == 0)
  }

  @Test func aReaderLetsQEMUReadButNotWrite() throws {
    let descriptor = try open(writable: false)
    defer { close(descriptor) }
    try ImageLock.acquire(.reader, descriptor: descriptor)
    #expect(try run("qemu-img", "check", image).status == 0)
    #expect(try run("qemu-io", "-r", "-c", "read 0 4k", image).status == 0)
    let writing = try run("qemu-io", "-c", "write 0 4k", image)
    #expect(writing.status != 0)
    #expect(writing.errors.contains("Failed to get \"write\" lock"))
  }

  @Test func theLockEndsWithTheDescriptor() throws {
    let descriptor = try open()
    try ImageLock.acquire(.writer, descriptor: descriptor)
    close(descriptor)
    #expect(try run("qemu-img", "check", image).status == 0)
  }

  @Test func aFailedAcquireLeavesNothingLocked() throws {
    let first = try open()
    let second = try open()
    try ImageLock.acquire(.writer, descriptor: first)
    #expect(throws: ImageLockError.self) { try ImageLock.acquire(.writer, descriptor: second) }
    close(first)
    #expect(try run("qemu-img", "check", image).status == 0)
    close(second)
  }

  @Test func twoReadersButNoWriterBesideThem() throws {
    let descriptors = [try open(writable: false), try open(writable: false), try open()]
    defer { for descriptor in descriptors { close(descriptor) } }
    try ImageLock.acquire(.reader, descriptor: descriptors[0])
    try ImageLock.acquire(.reader, descriptor: descriptors[1])
    #expect(throws: ImageLockError.self) {
      try ImageLock.acquire(.writer, descriptor: descriptors[2])
    }
  }

  @Test func addRefusesWhatQEMUWritesToAndNamesIt() throws {
    let holder = try holder()
    let process = holder.process
    let writing = try qublk("add", image)
    #expect(writing.status == 1)
    #expect(
      writing.errors == "qublk: \(image): image is in use: qemu-io (process \(process)) "
        + "does not share \"write\"\n")
    let reading = try qublk("add", "--read-only", image)
    #expect(reading.status == 1)
    #expect(
      reading.errors == "qublk: \(image): image is in use: qemu-io (process \(process)) "
        + "has its \"write\" lock\n")
    _ = holder.finish()
  }

  @Test func aReaderOfQEMUsAllowsReadersOnly() throws {
    let holder = try holder("-r")
    #expect(try qublk("add", image).errors.contains("does not share \"write\""))
    let descriptor = try open(writable: false)
    try ImageLock.acquire(.reader, descriptor: descriptor)
    close(descriptor)
    _ = holder.finish()
  }

  @Test func manyWhoTryAtOnceNeverBothWin() async throws {
    let image = self.image
    for _ in 0..<50 {
      let winners = await withTaskGroup(of: Int32.self, returning: [Int32].self) { group in
        for _ in 0..<8 {
          group.addTask {
            let descriptor = qublk_open_file(image, O_RDWR, 0)
            do throws(ImageLockError) {
              try ImageLock.acquire(.writer, descriptor: descriptor)
              return descriptor
            } catch {
              close(descriptor)
              return -1
            }
          }
        }
        return await group.reduce(into: [Int32]()) { if $1 >= 0 { $0.append($1) } }
      }
      #expect(winners.count <= 1)
      for winner in winners { close(winner) }
    }
  }
}
