import Testing

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
  private func holder(_ options: String, _ image: String) throws -> RunningShell {
    let running = try RunningShell(
      "exec qemu-io \(options) '\(scratch.file(image))'")
    running.send("read 0 512")
    running.waitFor("ops")
    return running
  }

  private func qemu(_ options: String) throws -> ShellResult {
    try shell("cd '\(scratch.path)' && qemu-io \(options)")
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
    #expect(try OpenChain(scratch.options("base", readOnly: false)).layers.count == 1)
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
    for readOnly in [false, true] {
      let message = openMessage(scratch.options("split", readOnly: readOnly))
      #expect(message?.hasPrefix("split: data file \"data\": image is in use: qemu-io") == true)
    }
    _ = holder.finish()
    #expect(try OpenChain(scratch.options("split")).files.count == 2)
  }
}
