import BlockCore
import DiskImages
import Glibc
import HostFiles
import ImageJobs
import QCOW2Engine
import QCOW2Tools
import Synchronization
import TestSupport
import TestTools
import Testing
import Uring

/// A chain of small images in a directory, and what a guest reads of the topmost one.
struct ChainFixture {
  let directory: TemporaryDirectory
  /// Those of the chain from the top down, then others.
  let names: [String]

  static let top = "top.qcow2"

  /// Runs `lines` of qemu-img and qemu-io in a new directory.
  init(_ names: [String], _ lines: [String]) throws {
    directory = try TemporaryDirectory(in: "/dev/shm")
    self.names = names
    try mustShell("cd \(directory.path) && " + lines.joined(separator: " && "))
  }

  /// A chain of these files.
  init(_ names: [String], in directory: TemporaryDirectory) {
    self.directory = directory
    self.names = names
  }

  func path(_ name: String) -> String { directory.file(name) }

  func bytes(_ name: String) throws -> TestSupport.ImageBytes {
    let bytes = TestSupport.ImageBytes(capacity: 1 << 26)
    bytes.put(try TestTools.contents(path(name)), 0)
    return bytes
  }

  /// All that a guest reads.
  func read() throws -> [UInt8] {
    let options = DiskImageOptions(path: path(Self.top), readOnly: true)
    return try runBlocking { () async throws in
      let disk = try await DiskImage.open(options)
      let size = Int(disk.target.size)
      let buffer = IOBuffer(count: size)
      let request = BlockRequest(.read, length: UInt64(size), data: buffer.data)
      let result = await disk.target.serve(request, at: RequestSlot(worker: 0, number: 0))
      #expect(result == .done)
      try await disk.close()
      defer { withExtendedLifetime(buffer) {} }
      return Array(UnsafeRawBufferPointer(start: buffer.base, count: size))
    }
  }

  /// What is wrong with an image but leaks; nil for nothing.
  func damage(_ name: String) throws -> String? {
    let bytes = try FileBytes(path: path(name), access: .readOnly, lock: ToolLock.none)
    let found = Mutex<[String]>([])
    let result = try ImageCheck.run(bytes) { finding in
      found.withLock { $0.append(finding.message) }
    }
    guard result.corruptions > 0 || result.checkErrors > 0 else { return nil }
    return "\(name): \(found.withLock { $0 }.first ?? "")"
  }

  /// How many clusters of an image have leaked.
  func leaks(_ name: String) throws -> UInt64 {
    let bytes = try FileBytes(path: path(name), access: .readOnly, lock: ToolLock.none)
    return UInt64(try ImageCheck.run(bytes) { _ in }.leaks)
  }

  /// The same chain with other bytes of some files.
  func with(_ changed: [(name: String, bytes: TestSupport.ImageBytes)]) throws -> ChainFixture {
    let copy = ChainFixture(names, in: try TemporaryDirectory(in: "/dev/shm"))
    for name in names where !changed.contains(where: { $0.name == name }) {
      try write(try contents(path(name)), to: copy.path(name))
    }
    for (name, bytes) in changed {
      try write(
        Array(UnsafeRawBufferPointer(start: bytes.base, count: bytes.length)), to: copy.path(name))
    }
    return copy
  }

  /// Options that record what a job does to some files, numbered as they are named.
  func options(recording names: [String], _ log: HostLog) throws -> DiskImageOptions {
    var options = DiskImageOptions(path: path(Self.top))
    var numbers: [UInt64: Int] = [:]
    for (number, name) in names.enumerated() { numbers[try inode(path(name))] = number }
    let found = numbers
    options.keepsEngineFiles = true
    options.mode = .buffered
    options.engineFile = { file in
      var status = stat()
      fstat(file.descriptor, &status)
      guard let number = found[UInt64(status.st_ino)] else { return file }
      return RecordingFile(file, log: log, number: number)
    }
    return options
  }

  private func inode(_ path: String) throws -> UInt64 {
    var status = stat()
    try #require(stat(path, &status) == 0)
    return UInt64(status.st_ino)
  }
}

/// Lets the n-th change of any file fail, and all after it.
final class FailingFile: ForwardingFile, Sendable {
  let file: any HostFile
  private let left: Counter

  /// How many changes succeed, of all files together.
  final class Counter: Sendable {
    private let left: Atomic<Int>
    init(_ count: Int) { left = Atomic(count) }
    func take() throws(Errno) {
      if left.wrappingSubtract(1, ordering: .relaxed).newValue < 0 { throw .io }
    }
    var hasFailed: Bool { left.load(ordering: .relaxed) < 0 }
  }

  init(_ file: any HostFile, _ left: Counter) {
    self.file = file
    self.left = left
  }

  func write(from buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    try left.take()
    try await file.write(from: buffer, at: offset)
  }

  func writeZeroes(at offset: HostOffset, length: UInt64) async throws(Errno) {
    try left.take()
    try await file.writeZeroes(at: offset, length: length)
  }

  func sync() async throws(Errno) {
    try left.take()
    try await file.sync()
  }
}
