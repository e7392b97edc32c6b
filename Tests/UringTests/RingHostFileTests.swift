import BlockCore
import CPlatform
import Glibc
import Testing

@testable import HostFiles
@testable import Uring

/// Every test runs twice: blocking on a plain thread, and on a worker's ring.
@Suite struct RingHostFileTests {
  enum Place: CaseIterable { case plainThread, worker }
  static let cases = Place.allCases.flatMap { place in
    [HostFileMode.direct, .buffered].map { (place, $0) }
  }

  private func run<T: Sendable>(
    _ place: Place, _ body: @escaping @Sendable () async throws -> T
  ) async throws -> T {
    switch place {
    case .plainThread: return try await body()
    case .worker:
      let worker = try TestWorker()
      defer { worker.end() }
      let result = await worker.run { () -> Result<T, any Error> in
        do { return .success(try await body()) } catch { return .failure(error) }
      }
      return try result.get()
    }
  }

  @Test func `a file that was closed is not read in debug builds`() async {
    await #expect(processExitsWith: .failure) {
      let temporary = try TemporaryFile()
      let file = try RingHostFile.open(temporary.path, readOnly: false, mode: .buffered)
      file.closeDescriptor()
      let buffer = IOBuffer(count: 512)
      try? await file.read(into: buffer.data, at: HostOffset(0))
    }
  }

  @Test(arguments: cases)
  func `what is written is read back`(_ place: Place, _ mode: HostFileMode) async throws {
    let temporary = try TemporaryFile()
    let file = try RingHostFile.open(temporary.path, readOnly: false, mode: mode)
    try await run(place) {
      let source = IOBuffer(count: 1 << 20)
      for index in 0..<source.count {
        source.base.storeBytes(of: UInt8(index % 251), toByteOffset: index, as: UInt8.self)
      }
      try await file.write(from: source.data, at: HostOffset(65536))
      try await file.sync()
      let copy = IOBuffer(count: 1 << 20)
      try await file.read(into: copy.data, at: HostOffset(65536))
      #expect(memcmp(source.base, copy.base, source.count) == 0)
      #expect(try await file.length() == 65536 + 1 << 20)
    }
  }

  @Test(arguments: cases)
  func `bytes beyond the end read as zeros`(_ place: Place, _ mode: HostFileMode) async throws {
    let temporary = try TemporaryFile()
    #expect(ftruncate(temporary.descriptor, 1000) == 0)
    #expect(pwrite(temporary.descriptor, "abc", 3, 997) == 3)
    let file = try RingHostFile.open(temporary.path, readOnly: true, mode: mode)
    try await run(place) {
      let buffer = IOBuffer(count: 8192)
      memset(buffer.base, 0xff, 8192)
      try await file.read(into: buffer.data, at: HostOffset(0))
      let bytes = UnsafeRawBufferPointer(start: buffer.base, count: 8192)
      #expect(bytes[996] == 0 && bytes[997] == 97 && bytes[999] == 99)
      #expect(bytes[1000...].allSatisfy { $0 == 0 })
      memset(buffer.base, 0xff, 8192)
      try await file.read(into: buffer.data, at: HostOffset(1 << 30))
      #expect(UnsafeRawBufferPointer(start: buffer.base, count: 8192).allSatisfy { $0 == 0 })
    }
  }

  @Test(arguments: cases)
  func `memory and offsets of any alignment are read`(
    _ place: Place, _ mode: HostFileMode
  ) async throws {
    let temporary = try TemporaryFile()
    let content = (0..<3_000_000).map { UInt8(truncatingIfNeeded: $0 &* 7 / 3) }
    let written = content.withUnsafeBytes {
      pwrite(temporary.descriptor, $0.baseAddress, $0.count, 0)
    }
    #expect(written == content.count)
    let file = try RingHostFile.open(temporary.path, readOnly: true, mode: mode)
    try await run(place) {
      let buffer = IOBuffer(count: 2_500_000)
      for (shift, offset, count) in [(1, 0, 512), (3, 1000, 5), (7, 511, 2_400_000), (0, 1, 4096)] {
        let data = buffer.data.slice(shift, count)
        try await file.read(into: data, at: HostOffset(UInt64(offset)))
        let equal = content.withUnsafeBytes {
          memcmp(buffer.base + shift, $0.baseAddress! + offset, count) == 0
        }
        #expect(equal)
      }
    }
  }

  @Test(arguments: cases)
  func `unaligned memory is written`(_ place: Place, _ mode: HostFileMode) async throws {
    let temporary = try TemporaryFile()
    let file = try RingHostFile.open(temporary.path, readOnly: false, mode: mode)
    try await run(place) {
      let buffer = IOBuffer(count: 8192)
      memset(buffer.base + 3, 0x42, 4096)
      try await file.write(from: buffer.data.slice(3, 4096), at: HostOffset(4096))
      let copy = IOBuffer(count: 4096)
      try await file.read(into: copy.data, at: HostOffset(4096))
      #expect(memcmp(copy.base, buffer.base + 3, 4096) == 0)
    }
  }

  @Test(arguments: cases, ["/var/tmp", "/dev/shm"])
  func `zeroes are written inside the file and past its end`(
    _ which: (Place, HostFileMode), _ directory: String
  ) async throws {
    let (place, mode) = which
    let temporary = try TemporaryFile(directory: directory)
    let file = try RingHostFile.open(temporary.path, readOnly: false, mode: mode)
    try await run(place) {
      let ones = IOBuffer(count: 1 << 20)
      memset(ones.base, 1, ones.count)
      try await file.write(from: ones.data, at: HostOffset(0))
      try await file.writeZeroes(at: HostOffset(4096), length: 65536)
      try await file.writeZeroes(at: HostOffset(1 << 20), length: 1 << 20)
      #expect(try await file.length() == 2 << 20)
      let copy = IOBuffer(count: 1 << 20)
      try await file.read(into: copy.data, at: HostOffset(0))
      let bytes = UnsafeRawBufferPointer(start: copy.base, count: copy.count)
      #expect(bytes[..<4096].allSatisfy { $0 == 1 })
      #expect(bytes[4096..<69632].allSatisfy { $0 == 0 })
      #expect(bytes[69632...].allSatisfy { $0 == 1 })
    }
  }

  @Test(arguments: cases)
  func `a punched hole gives blocks back`(_ place: Place, _ mode: HostFileMode) async throws {
    let temporary = try TemporaryFile()
    let file = try RingHostFile.open(temporary.path, readOnly: false, mode: mode)
    let before = try await run(place) {
      let ones = IOBuffer(count: 1 << 20)
      memset(ones.base, 1, ones.count)
      try await file.write(from: ones.data, at: HostOffset(0))
      try await file.sync()
      let before = Self.blocks(file.descriptor)
      try await file.punchHole(at: HostOffset(0), length: 1 << 19)
      #expect(try await file.length() == 1 << 20)
      return before
    }
    #expect(Self.blocks(file.descriptor) <= before / 2)
  }

  private static func blocks(_ descriptor: Int32) -> Int {
    var info = stat()
    fstat(descriptor, &info)
    return Int(info.st_blocks)
  }

  @Test(arguments: cases)
  func `the length is set both ways`(_ place: Place, _ mode: HostFileMode) async throws {
    let temporary = try TemporaryFile()
    let file = try RingHostFile.open(temporary.path, readOnly: false, mode: mode)
    try await run(place) {
      try await file.setLength(1 << 20)
      #expect(try await file.length() == 1 << 20)
      try await file.setLength(512)
      #expect(try await file.length() == 512)
    }
  }

  @Test(arguments: cases)
  func `a write to a read-only file fails`(_ place: Place, _ mode: HostFileMode) async throws {
    let temporary = try TemporaryFile()
    let file = try RingHostFile.open(temporary.path, readOnly: true, mode: mode)
    #expect(file.traits.isReadOnly)
    try await run(place) {
      let buffer = IOBuffer(count: 4096)
      await #expect(throws: Errno(EBADF)) {
        try await file.write(from: buffer.data, at: HostOffset(0))
      }
    }
  }

  @Test func `only regular files and block devices are opened`() throws {
    #expect(throws: HostFileError.notAFile) {
      try RingHostFile.open("/dev/null", readOnly: true)
    }
    #expect(throws: HostFileError.notAFile) { try RingHostFile.open("/tmp", readOnly: true) }
    #expect(throws: HostFileError.open(.noEntry)) {
      try RingHostFile.open("/nonexistent", readOnly: true)
    }
  }

  @Test func `a FIFO does not keep the open waiting`() throws {
    let path = "/var/tmp/qublk-test-fifo.\(getpid())"
    #expect(mkfifo(path, 0o600) == 0)
    defer { unlink(path) }
    #expect(throws: HostFileError.notAFile) { try RingHostFile.open(path, readOnly: true) }
  }

  @Test func `direct I/O says what it wants, and gives way to a stricter caller`() throws {
    let temporary = try TemporaryFile()
    let file = try RingHostFile.open(temporary.path, readOnly: false)
    if file.isDirect { #expect(file.traits.offsetAlignment <= 512) }
    let picky = try RingHostFile.open(temporary.path, readOnly: false, granularity: 1)
    #expect(!picky.isDirect && picky.traits.offsetAlignment == 1)
  }

  @Test(arguments: cases)
  func `a reservation changes nothing that the file holds`(
    _ place: Place, _ mode: HostFileMode
  ) async throws {
    let temporary = try TemporaryFile()
    let file = try RingHostFile.open(temporary.path, readOnly: false, mode: mode)
    try await run(place) {
      let ones = IOBuffer(count: 1 << 20)
      memset(ones.base, 1, ones.count)
      try await file.write(from: ones.data, at: HostOffset(0))
      // Across the end of the file, then wholly inside of it, then wholly behind it.
      for (start, end) in [(1 << 19, 3 << 19), (1 << 18, 1 << 19), (2 << 20, 3 << 20)] {
        let given = try await file.reserve(
          at: HostOffset(UInt64(start)), length: UInt64(end - start))
        #expect(given != .short)
        #expect(try await file.length() == max(end, 3 << 19))
        let copy = IOBuffer(count: max(end, 3 << 19))
        try await file.read(into: copy.data, at: HostOffset(0))
        let bytes = UnsafeRawBufferPointer(start: copy.base, count: copy.count)
        #expect(bytes[..<(1 << 20)].allSatisfy { $0 == 1 })
        #expect(bytes[(1 << 20)...].allSatisfy { $0 == 0 })
      }
    }
  }

  @Test func `a reservation on a block device does nothing`() async throws {
    let temporary = try TemporaryFile()
    let file = RingHostFile(
      descriptor: dup(temporary.descriptor),
      traits: HostFileTraits(isBlockDevice: true, offsetAlignment: 512), isDirect: true,
      memoryAlignment: 512)
    #expect(try await file.reserve(at: HostOffset(0), length: 1 << 20) == .stored)
    #expect(try await file.reserve(at: HostOffset(1 << 20), length: 1 << 20) == .stored)
    #expect(try await file.length() == 0)
    #expect(Self.blocks(file.descriptor) == 0)
  }

  @Test func `clearing is for block devices, and says whether it was done`() async throws {
    let temporary = try TemporaryFile()
    var bytes = [UInt8](repeating: 7, count: 3 << 16)
    pwrite(temporary.descriptor, &bytes, bytes.count, 0)
    func cleared(isDevice: Bool, descriptor: Int32, clears: Bool = true) async -> Bool {
      let file = RingHostFile(
        descriptor: dup(descriptor),
        traits: HostFileTraits(isBlockDevice: isDevice, offsetAlignment: 512), isDirect: false,
        memoryAlignment: 512, clearsAtOnce: clears)
      return await file.clear(at: HostOffset(1 << 16), length: 1 << 16)
    }
    #expect(await !cleared(isDevice: false, descriptor: temporary.descriptor))
    #expect(await !cleared(isDevice: true, descriptor: temporary.descriptor, clears: false))
    pread(temporary.descriptor, &bytes, bytes.count, 0)
    #expect(bytes.allSatisfy { $0 == 7 })
    // A pipe refuses, as a device without WRITE ZEROES does.
    var ends: [Int32] = [0, 0]
    #expect(pipe(&ends) == 0)
    #expect(await !cleared(isDevice: true, descriptor: ends[1]))
    ends.forEach { close($0) }
    #expect(await cleared(isDevice: true, descriptor: temporary.descriptor))
    pread(temporary.descriptor, &bytes, bytes.count, 0)
    let zeros = (1 << 16)..<(2 << 16)
    #expect(bytes.indices.allSatisfy { bytes[$0] == (zeros.contains($0) ? 0 : 7) })
  }

  @Test func `a closed file has no descriptor left, whatever was in the page cache`() throws {
    let temporary = try TemporaryFile()
    for _ in 0..<3 {
      // Dirty pages, so that emptying the cache takes a while.
      var bytes = [UInt8](repeating: 7, count: 1 << 20)
      for part in 0..<32 { pwrite(temporary.descriptor, &bytes, bytes.count, off_t(part << 20)) }
      let file = try RingHostFile.open(temporary.path, readOnly: false)
      file.dropPageCache()
      file.dropPageCache()
      file.closeDescriptor()
      #expect(Self.descriptors(of: temporary.path) == 1)
    }
  }

  /// The descriptors that this process has of a file.
  private static func descriptors(of path: String) -> Int {
    (0..<1024).count { number in
      var target = [CChar](repeating: 0, count: 4096)
      let count = readlink("/proc/self/fd/\(number)", &target, target.count)
      return count > 0
        && String(decoding: target[..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self) == path
    }
  }
}
