import Glibc
import HostFiles
import TestTools
import Testing
import Uring

@testable import DiskImages

/// Locks of a whole chain, against the real QEMU tools, in both directions [COW-16, SEC-6].
@Suite(.enabled(if: hasQEMU, "needs qemu-img and qemu-io")) struct ChainLockTests {
  let scratch: Scratch

  init() throws {
    scratch = try Scratch()
    try scratch.run(
      """
      qemu-img create -q -f qcow2 base 1M
      qemu-img create -q -f qcow2 -b base -F qcow2 top
      qemu-img create -q -f qcow2 -b base -F qcow2 other
      qemu-img create -q -f qcow2 -o data_file=data,data_file_raw=on split 1M
      """)
  }

  /// A qemu-io that has an image open until its input ends.
  ///
  /// Programs that other tests start hold copies of this process's locks until they exec, so what
  /// was closed here may stay locked for a moment.
  private func holder(_ options: String, _ image: String) throws -> Subprocess {
    for _ in 0..<50 {
      let running = try Subprocess(
        "bash", ["-c", "exec qemu-io \(options) '\(scratch.file(image))'"], joinsErrors: true)
      running.send("read 0 512")
      if running.waitFor("ops") { return running }
      _ = running.finish()
      usleep(20_000)
    }
    throw POSIXFailure(code: EAGAIN)
  }

  /// What ``openMessage(_:)`` says once such copies of locks are gone.
  private func lastingMessage(_ options: DiskImageOptions) -> String? {
    for _ in 0..<50 {
      guard let message = openMessage(options) else { return nil }
      if !message.contains("another process") { return message }
      usleep(20_000)
    }
    return openMessage(options)
  }

  private func qemu(_ options: String) throws -> Outcome {
    try shell("cd '\(scratch.path)' && qemu-io \(options)")
  }

  /// Someone may still have the open file: a program that is being started, or the kernel.
  @Test(arguments: [DiskFormat.qcow2, .raw])
  func whatIsClosedIsUnlockedWhoeverHasItStill(_ format: DiskFormat) throws {
    let name = format == .raw ? "raw" : "base"
    try scratch.run("qemu-img create -q -f raw raw 1M")
    let options = scratch.options(name, readOnly: false)
    let copy = try runBlocking { () async throws(DiskImageError) in
      let disk = try await format.open(options, size: 0)
      let copy = dup(disk.files[0].descriptor)
      try await disk.close()
      return copy
    }
    defer { close(copy) }
    let writing = try qemu("-f \(format) -c 'write 0 4k' \(name)")
    #expect(writing.status == 0, "\(writing.output)")
  }

  @Test(arguments: [true, false])
  func nobodyWritesToABaseWhileAnOverlayIsOpen(_ readOnly: Bool) throws {
    let chain = try OpenChain(scratch.options("top", readOnly: readOnly))
    let writing = try qemu("-c 'write 0 4k' base")
    #expect(writing.status != 0)
    #expect(writing.output.contains("Failed to get \"write\" lock"))
    #expect(try qemu("-r -c 'read 0 4k' base").status == 0)
    #expect(try qemu("-c 'write 0 4k' other").status == 0, "a second overlay is fine")
    withExtendedLifetime(chain) {}
  }

  @Test func ourOwnWriterOnTheBaseIsRefusedToo() throws {
    var chain: OpenChain? = try OpenChain(scratch.options("top", readOnly: false))
    #expect(
      openMessage(scratch.options("base", readOnly: false))
        == "base: image is in use: another process does not share \"write\"")
    withExtendedLifetime(chain) {}
    chain = nil
    #expect(lastingMessage(scratch.options("base", readOnly: false)) == nil)
  }

  @Test func anOverlayIsRefusedWhileQEMUWritesToItsBase() throws {
    let holder = try holder("", "base")
    let process = holder.process
    #expect(
      openMessage(scratch.options("top"))
        == "top: backing file \"base\": image is in use: qemu-io (process \(process)) "
        + "has its \"write\" lock")
    #expect(scratch.openFiles == 0)
    var options = scratch.options("top")
    options.locks = .none
    #expect(try OpenChain(options).layers.count == 2)
    _ = holder.finish()
  }

  @Test func aBaseIsRefusedToWritersWhileQEMUHasAnOverlay() throws {
    let holder = try holder("-r", "top")
    let process = holder.process
    #expect(
      openMessage(scratch.options("base", readOnly: false))
        == "base: image is in use: qemu-io (process \(process)) does not share \"write\"")
    #expect(try OpenChain(scratch.options("other", readOnly: false)).layers.count == 2)
    _ = holder.finish()
  }

  @Test func aDataFileIsLockedAsItsImageIs() throws {
    var chain: OpenChain? = try OpenChain(scratch.options("split", readOnly: false))
    let writing = try qemu("-f raw -c 'write 0 4k' data")
    #expect(writing.output.contains("Failed to get \"write\" lock"))
    withExtendedLifetime(chain) {}
    chain = nil
    let holder = try holder("-f raw", "data")
    let process = holder.process
    for readOnly in [false, true] {
      let message = lastingMessage(scratch.options("split", readOnly: readOnly))
      #expect(
        message == "split: data file \"data\": image is in use: qemu-io (process \(process)) "
          + "has its \"write\" lock")
    }
    _ = holder.finish()
    #expect(try OpenChain(scratch.options("split")).files.count == 2)
  }
}
