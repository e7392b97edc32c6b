import BlockCore
import QCOW2Format
import QCOW2Tools
import TestTools
import Testing

@Suite struct CreateTests {
  static let forms = [
    "", "compat=0.10", "compat=v3", "lazy_refcounts=on", "cluster_size=512",
    "cluster_size=4k,refcount_bits=1", "cluster_size=1k,refcount_bits=32",
    "cluster_size=2M,refcount_bits=64", "refcount_bits=2", "refcount_bits=4,lazy_refcounts=on",
    "refcount_bits=8,cluster_size=128k",
  ]
  static let sizes = ["0", "1000", "64k", "65k", "10M"]

  /// QEMU leaves the old refcount table and holes behind when the table has to grow; we do not.
  private static func hasQEMUsLength(_ form: String, _ size: String, _ mode: String) -> Bool {
    if size == "0" && (mode == "falloc" || mode == "full") { return false }
    let hasSmallClusters = form.contains("refcount_bits=32") || form == "cluster_size=512"
    return !(size == "10M" && mode == "metadata" && hasSmallClusters)
  }

  @Test(
    .enabled(if: hasQEMU, "needs qemu-img"), arguments: forms,
    ["off", "metadata", "falloc", "full"])
  func imagesAreWhatQEMUMakesOfTheSameOptions(form: String, mode: String) throws {
    let folder = try Folder()
    for size in Self.sizes where !(size == "10M" && mode == "full") {
      let list = (form.isEmpty ? "" : form + ",") + "preallocation=\(mode)"
      let made = folder.run("qemu-img create -f qcow2 -o \(list) x.qcow2 \(size)")
      let info = folder.run("qemu-img info --output=json x.qcow2 | grep -v actual-size")
      let length = folder.bytes("x.qcow2").count
      folder.run("mv x.qcow2 theirs.qcow2")

      let options = try CreateOptions(lists: [list], size: size)
      #expect(options.formattingLine(path: "x.qcow2") + "\n" == made.out)
      try ImageCreate.run(options, path: "\(folder.path)/x.qcow2")

      let ours = folder.run("qemu-img info --output=json x.qcow2 | grep -v actual-size")
      #expect(ours.out == info.out)
      let check = folder.run("qemu-img check x.qcow2")
      #expect(check.status == 0, "\(list) \(size): \(check.out) \(check.err)")
      #expect(folder.run("qemu-img compare theirs.qcow2 x.qcow2").status == 0)
      if Self.hasQEMUsLength(form, size, mode) {
        #expect(folder.bytes("x.qcow2").count == length, "\(list) \(size)")
      }
      let result = try ImageCheck.run(
        FileBytes(path: "\(folder.path)/x.qcow2", access: .readOnly))
      #expect(result.exitCode == 0)
      folder.run("rm x.qcow2 theirs.qcow2")
    }
  }

  @Test(.enabled(if: hasQEMU, "needs qemu-img"))
  func theLargestImageOfEachClusterSizeIsClean() throws {
    for bits in 9...21 {
      let folder = try Folder()
      var options = CreateOptions(size: 0)
      options.clusterBits = bits
      let geometry = ClusterGeometry(clusterBits: bits, refcountOrder: 4)
      options.size = min(
        UInt64(Int64.max) & ~511 - 512, (FormatLimit.l1Bytes / 8) * geometry.bytesPerL2Table)
      try ImageCreate.run(options, path: "\(folder.path)/x.qcow2")
      #expect(folder.run("qemu-img check x.qcow2").status == 0)
      guard bits < 21 else { continue }
      options.size += 512
      #expect(throws: ToolError.self) {
        try ImageCreate.run(options, path: "\(folder.path)/y.qcow2")
      }
      #expect(folder.run("test -e y.qcow2").status == 1)
    }
  }

  @Test func anOldImageIsGone() throws {
    var options = CreateOptions(size: 1 << 20)
    options.preallocation = .full
    let file = MemoryBytes([UInt8](repeating: 0xaa, count: 5 << 20))
    try ImageCreate.run(options, on: file)
    #expect(try ImageCheck.run(file).exitCode == 0)
    #expect(file.bytes.count == 21 * 65536)
    #expect(!file.bytes.contains(0xaa))
  }

  @Test func aBlockDeviceKeepsItsLengthAndLosesItsOldBytes() throws {
    for mode in Preallocation.allCases {
      var options = CreateOptions(size: 1 << 20)
      options.preallocation = mode
      let file = MemoryBytes([UInt8](repeating: 0xaa, count: 5 << 20), isBlockDevice: true)
      try ImageCreate.run(options, on: file)
      #expect(try ImageCheck.run(file).exitCode == 0)
      #expect(file.bytes.count == 5 << 20)
      if mode != .off {
        let data = file.bytes[(5 * 65536)..<(21 * 65536)]
        #expect(data.allSatisfy { $0 == 0 })
      }
    }
  }

  @Test func aBlockDeviceThatIsTooSmallIsLeftAlone() {
    var options = CreateOptions(size: 1 << 20)
    options.preallocation = .metadata
    let old = [UInt8](repeating: 0xaa, count: 20 * 65536)
    let file = MemoryBytes(old, isBlockDevice: true)
    #expect(throws: ToolError.deviceTooSmall(needed: 21 * 65536, available: 20 * 65536)) {
      try ImageCreate.run(options, on: file)
    }
    #expect(file.bytes == old)
  }

  /// The file of a create that is cut off after any number of writes is never an image.
  @Test(arguments: Preallocation.allCases)
  func anInterruptedCreateIsNoImage(mode: Preallocation) throws {
    var options = CreateOptions(size: 1 << 20)
    options.clusterBits = 12
    options.preallocation = mode
    for device in [false, true] {
      var old = MemoryBytes([], isBlockDevice: false)
      try ImageCreate.run(CreateOptions(size: 4 << 20), on: old)
      let whole = old.bytes + [UInt8](repeating: 1, count: 4 << 20)
      old = MemoryBytes(whole, isBlockDevice: device)
      var steps = 0
      var images = 0
      while true {
        let file = FailingBytes(MemoryBytes(whole, isBlockDevice: device), after: steps)
        do throws(ToolError) {
          try ImageCreate.run(options, on: file)
          break
        } catch {
          #expect(error == .host(.sync, errno: .noSpace))
        }
        if steps > 0, (try? ImageCheck.run(file.inner)) != nil { images += 1 }
        steps += 1
      }
      #expect(steps >= 6)
      #expect(images == 1, "only when the very last fsync fails is the header there")
    }
  }

  @Test func aFailedCreateRemovesOnlyTheFileThatItMade() throws {
    let folder = try Folder()
    let options = CreateOptions(size: 1 << 20)
    let refuse: FileBytes.Locker = { _ throws(ToolError) in throw .inUse(reason: "in use") }
    try folder.write([1, 2, 3], "old")
    #expect(throws: ToolError.inUse(reason: "in use")) {
      try ImageCreate.run(options, path: "\(folder.path)/old", lock: refuse)
    }
    #expect(folder.bytes("old") == [1, 2, 3])
  }

  @Test func onlyFilesAndBlockDevicesAreOpened() throws {
    let folder = try Folder()
    folder.run("mkfifo fifo; mkdir folder")
    let options = CreateOptions(size: 1 << 20)
    for path in ["\(folder.path)/fifo", "/dev/null"] {
      #expect(throws: ToolError.notRegularFile) { try ImageCreate.run(options, path: path) }
      #expect(throws: ToolError.notRegularFile) {
        try FileBytes(path: path, access: .readOnly)
      }
    }
    #expect(throws: ToolError.self) {
      try ImageCreate.run(options, path: "\(folder.path)/folder")
    }
    #expect(throws: ToolError.host(.create, errno: .noEntry)) {
      try ImageCreate.run(options, path: "\(folder.path)/missing/x")
    }
  }
}

/// Fails every change after the first `after` ones.
private final class FailingBytes: WritableImageBytes {
  let inner: MemoryBytes
  private var left: Int

  init(_ inner: MemoryBytes, after: Int) {
    self.inner = inner
    left = after
  }

  var length: UInt64 { inner.length }
  var isBlockDevice: Bool { inner.isBlockDevice }

  private func step() throws(ToolError) {
    guard left > 0 else { throw .host(.sync, errno: .noSpace) }
    left -= 1
  }

  func read(
    into buffer: UnsafeMutableRawBufferPointer, at offset: HostOffset
  ) throws(ToolError) { try inner.read(into: buffer, at: offset) }

  func write(_ buffer: UnsafeRawBufferPointer, at offset: HostOffset) throws(ToolError) {
    try step()
    try inner.write(buffer, at: offset)
  }
  func setLength(_ length: UInt64) throws(ToolError) {
    try step()
    try inner.setLength(length)
  }
  func allocate(_ length: UInt64) throws(ToolError) {
    try step()
    try inner.allocate(length)
  }
  func sync() throws(ToolError) { try step() }
}
