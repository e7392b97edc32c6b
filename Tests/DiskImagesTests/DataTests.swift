import BlockCore
import DiskImages
import HostFiles
import QCOW2Engine
import TestTools
import Testing

/// What a guest reads and writes through chains, against QEMU's tools [COW-11].
@Suite(.enabled(if: hasQEMU, "needs qemu-img and qemu-io")) struct DataTests {
  let scratch: Scratch

  init() throws { scratch = try Scratch() }

  /// Makes layers `0` (raw or qcow2) to `depth` with data of their own, of different sizes.
  private func makeChain(_ depth: Int, base: BackingFormat) throws {
    try scratch.run(
      """
      qemu-img create -q -f \(base.rawValue) 0 2000000
      qemu-io -f \(base.rawValue) -c 'write -P 100 0 1999872' 0
      """)
    for layer in 1...depth {
      let format = layer == 1 ? base.rawValue : "qcow2"
      let size = [1_500_160, 3_000_320, 2_500_096][layer % 3]
      try scratch.run(
        """
        qemu-img create -q -f qcow2 -b \(layer - 1) -F \(format) \(layer) \(size)
        qemu-io -c 'write -P \(layer) \(layer * 60000 & ~511) 100352' \(layer)
        """)
    }
  }

  @Test(arguments: 1...8, BackingFormat.allCases)
  func chainsReadAsQEMUReadsThem(_ depth: Int, _ base: BackingFormat) throws {
    try makeChain(depth, base: base)
    try scratch.run("qemu-img convert -O raw \(depth) expected")
    let expected = try contents(scratch.file("expected"))
    for mode in [HostFileMode.direct, .buffered] {
      var options = scratch.options("\(depth)")
      options.mode = mode
      let found = try withDisk(options) { try await $0.contents() }
      #expect(found == expected, "\(mode)")
    }
  }

  @Test(arguments: [1, 3, 8])
  func whatIsWrittenIsThereForQEMU(_ depth: Int) throws {
    try makeChain(depth, base: .raw)
    let before = try (0..<depth).map { try contents(scratch.file("\($0)")) }
    try scratch.run("cp \(depth) twin")
    try withDisk(scratch.options("\(depth)", readOnly: false)) { guest in
      try await guest.write(0xaa, at: 1536, count: 4096)
      try await guest.write(0xbb, at: 700_416, count: 200_192)
      try await guest.write(0xcc, at: guest.disk.engine.size - 512, count: 512)
    }
    let size = [1_500_160, 3_000_320, 2_500_096][depth % 3]
    try scratch.run(
      """
      qemu-io -c 'write -P 0xaa 1536 4096' -c 'write -P 0xbb 700416 200192' \
        -c 'write -P 0xcc \(size - 512) 512' twin
      qemu-img compare -f qcow2 -F qcow2 \(depth) twin
      qemu-img check \(depth)
      """)
    for layer in 0..<depth {
      #expect(try contents(scratch.file("\(layer)")) == before[layer], "layer \(layer)")
    }
  }

  @Test func aRawBackingFileIsReadOnTheHitPath() throws {
    try makeChain(1, base: .raw)
    try withDisk(scratch.options("1")) { guest in
      let buffer = IOBuffer(count: 4096)
      let request = BlockRequest(
        .read, offset: GuestOffset(1 << 20), length: 4096, data: buffer.data)
      try await guest.perform(request)  // loads the slice
      #expect(guest.isPlanned(request))
      withExtendedLifetime(buffer) {}
    }
  }

  @Test(arguments: [true, false])
  func externalDataFilesAreReadAndWritten(_ isRaw: Bool) throws {
    try scratch.run(
      """
      qemu-img create -q -f qcow2 -o data_file=data,data_file_raw=\(isRaw ? "on" : "off") top 4M
      qemu-io -c 'write -P 3 64k 256k' top
      """)
    try withDisk(scratch.options("top", readOnly: false)) { guest in
      try await guest.write(4, at: 1 << 20, count: 100_352)
    }
    try scratch.run(
      """
      qemu-io -r -c 'read -P 3 64k 256k' -c 'read -P 4 1M 98k' -c 'read -P 0 2M 1M' top
      qemu-img check top
      """)
    if isRaw { try scratch.run("qemu-img compare -f raw -F qcow2 data top") }
    #expect(scratch.openFiles == 0)
  }

  @Test func theDataFileOfABackingImageIsRead() throws {
    try scratch.run(
      """
      qemu-img create -q -f qcow2 -o data_file=data base 1M
      qemu-io -c 'write -P 5 0 1M' base
      qemu-img create -q -f qcow2 -b base -F qcow2 top
      """)
    let found = try withDisk(scratch.options("top")) { try await $0.contents() }
    #expect(found == [UInt8](repeating: 5, count: 1 << 20))
  }
}
