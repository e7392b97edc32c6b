import DiskImages
import TestTools
import Testing

/// What becomes of images that are marked dirty [ORD-24, CHK-5].
@Suite(.enabled(if: hasQEMU, "needs qemu-img and qemu-io")) struct DirtyImageTests {
  let scratch: Scratch

  init() throws { scratch = try Scratch() }

  /// An image that QEMU left dirty, with a snapshot that shares its clusters.
  private func makeDirty(_ name: String) throws {
    try scratch.run(
      """
      qemu-img create -q -f qcow2 -o lazy_refcounts=on,cluster_size=4k \(name) 16M
      qemu-io -c 'write -P 1 0 2M' \(name) && qemu-img snapshot -c one \(name)
      qemu-io -c 'write -P 2 1M 4M' -c 'write -P 3 9M 1M' -c 'flush' -c 'sigraise 9' \(name) || true
      cp \(name) \(name).before; qemu-img check -q -r all \(name).before
      """)
    #expect(try contents(scratch.file(name))[79] == 1, "QEMU left no dirty image")
  }

  @Test func aWriterRebuildsTheRefcountsFirst() throws {
    try makeDirty("x")
    let rebuilt = try withDisk(scratch.options("x", readOnly: false)) { guest in
      try await guest.write(7, at: 6 << 20, count: 1 << 20)
      return guest.disk.rebuilt
    }
    #expect(rebuilt?.contains("refcounts rebuilt") == true)
    #expect(try contents(scratch.file("x"))[79] == 0)
    #expect(try contents(scratch.file("x"))[87] == 1, "lazy_refcounts stays")
    try scratch.run(
      """
      qemu-img check x
      qemu-io -c 'read -P 1 0 1M' -c 'read -P 2 1M 4M' -c 'read -P 3 9M 1M' -c 'read -P 7 6M 1M' x
      qemu-img convert -l one -O raw x snap; qemu-io -f raw -c 'read -P 1 0 2M' snap
      """)
    #expect(try withDisk(scratch.options("x", readOnly: false)) { $0.disk.rebuilt } == nil)
  }

  @Test func aReaderLeavesItAsItIs() throws {
    try makeDirty("x")
    let before = try contents(scratch.file("x"))
    let rebuilt = try withDisk(scratch.options("x")) { $0.disk.rebuilt }
    #expect(rebuilt == nil)
    #expect(try contents(scratch.file("x")) == before)
  }

  @Test func damageOfOtherKindsIsRefusedWithNothingChanged() throws {
    try makeDirty("x")
    // The first L1 entry leads to something that is not aligned.
    try scratch.run(
      """
      l1=$(od -An -j40 -N8 -tu8 --endian=big x | tr -d ' ')
      printf '\\x02' | dd of=x bs=1 seek=$((l1 + 6)) conv=notrunc status=none
      """)
    let before = try contents(scratch.file("x"))
    let message = openMessage(scratch.options("x", readOnly: false))
    #expect(message?.contains("marked dirty: not only refcounts are wrong") == true)
    #expect(try contents(scratch.file("x")) == before)
  }
}
