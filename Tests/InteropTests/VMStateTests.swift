import BlockCore
import QCOW2Engine
import TestTools
import Testing

/// VM state as QEMU keeps it: behind the disk.
@Suite(.enabled(if: hasQEMU, Qemu.reason))
struct VMStateTests {
  static let options = [
    "cluster_size=512", "cluster_size=4096", "cluster_size=65536,refcount_bits=1",
    "cluster_size=2M,refcount_bits=64", "cluster_size=512,compat=0.10", "extended_l2=on",
  ]

  @Test("QEMU reads the VM state that we write", arguments: options)
  func qemuReadsOurs(options: String) throws {
    let scratch = try Scratch()
    let path = try makeImage(scratch, options, size: "1M")
    try withEngine(path) { image in
      try await image.writePattern(1, at: 0, count: 1 << 20)
      for index in 0..<6 {
        let part = IOBuffer(count: 100_000)
        part.base.initializeMemory(as: UInt8.self, repeating: UInt8(index + 10), count: part.count)
        try await image.writeVMState(from: part.data, at: UInt64(index * 100_000))
      }
      let size = image.size
      let request = BlockRequest(.read, offset: GuestOffset(size), length: 512)
      guard await image.serve(request, at: RequestSlot(worker: 0, number: 0)) == .failed(.invalid)
      else {
        throw Mismatch(description: "the guest can read VM state")
      }
    }
    #expect(try Qemu.complaint(path) == nil)
    try Qemu.io(
      path,
      [
        "read -P 1 0 1M", "read -b -P 10 0 99840", "read -b -P 12 204288 1k",
        "read -b -P 15 512000 83k", "read -b -P 0 600064 64k",
      ])
  }

  @Test("We read the VM state that QEMU writes", arguments: options)
  func weReadQEMUs(options: String) throws {
    let scratch = try Scratch()
    let path = try makeImage(scratch, options, size: "1M")
    try Qemu.io(
      path, ["write -P 1 0 1M", "write -b -P 2 0 300k", "write -b -P 3 300k 1k"])
    try withEngine(path) { image in
      try await image.expectVMState(2, 0, 300 << 10)
      try await image.expectVMState(3, (300 << 10) + 1, 1000)
      try await image.expectVMState(0, 301 << 10, 1 << 20)
      try await image.expectVMState(0, 1 << 40, 4096)
      try await image.writePattern(4, at: 0, count: 1 << 20)
      try await image.writeVMState(from: patternBuffer(8, seed: 5).data, at: 5000)
      try await image.expectVMState(2, 0, 5000)
      try await image.expectVMState(2, 5008, 300_000)
    }
    #expect(try Qemu.complaint(path) == nil)
    try Qemu.io(path, ["read -P 4 0 1M", "read -b -P 2 5120 100k"])
  }

  @Test("A snapshot keeps its VM state, at the place that its size gives")
  func snapshotKeepsItsState() throws {
    let scratch = try Scratch()
    let path = try makeImage(scratch, "cluster_size=4096", size: "1M")
    try Qemu.io(path, ["write -P 1 0 1M", "write -b -P 2 0 300k"])
    try mustRun("qemu-img", "snapshot", "-c", "one", path)
    try withEngine(path) { image in
      let state = IOBuffer(count: 400 << 10)
      state.base.initializeMemory(as: UInt8.self, repeating: 7, count: state.count)
      try await image.writeVMState(from: state.data, at: 0)
      try await image.writePattern(9, at: 0, count: 1 << 20)
      try await image.expectVMState(7, 0, 400 << 10)
      try await image.resize(to: 64 << 20)
      try await image.expectVMState(0, 0, 400 << 10)
    }
    var options = ImageOptions()
    options.snapshot = .name("one")
    try withEngine(path, options) { image in
      try await image.expectVMState(2, 0, 300 << 10)
      try await image.expectVMState(0, 300 << 10, 100 << 10)
      let error = await #expect(throws: ImageError.self) {
        try await image.writeVMState(from: patternBuffer(512, seed: 1).data, at: 0)
      }
      #expect(error?.errno == .readOnly)
    }
    #expect(try Qemu.complaint(path) == nil)
    try mustRun("qemu-img", "snapshot", "-a", "one", path)
    try Qemu.io(path, ["read -P 1 0 1M", "read -b -P 2 0 300k"])
  }
}

extension Image {
  /// Throws if a range of the VM state is not all one byte.
  func expectVMState(_ byte: UInt8, _ offset: UInt64, _ count: Int) async throws {
    let buffer = IOBuffer(count: count)
    buffer.base.initializeMemory(as: UInt8.self, repeating: 0xa5, count: count)
    try await readVMState(into: buffer.data, at: offset)
    let bytes = UnsafeRawBufferPointer(start: buffer.base, count: count)
    if let bad = bytes.firstIndex(where: { $0 != byte }) {
      throw Mismatch(
        description: "VM state at \(offset) + \(bad) is \(bytes[bad]), expected \(byte)")
    }
  }
}
