import BlockCore
import CPlatform
import Glibc
import Testing

@testable import HostFiles
@testable import Uring

/// Reservations whose storage the host refuses.
///
/// A seccomp filter, of one thread, makes fallocate(2) fail there as a file system would.
@Suite struct ReservationTests {
  @Test(arguments: [EDQUOT, EFBIG, ENOSPC])
  func `a host without room for a reservation says so, and keeps nothing`(error: Int32) throws {
    let temporary = try TemporaryFile()
    let file = try RingHostFile.open(temporary.path, readOnly: false)
    try #require(file.isDirect && !file.isInMemory, "/var/tmp is memory, or has no direct I/O")
    let outcome = try withoutReservations(error) { () async throws(Errno) in
      #expect(try await file.reserve(at: HostOffset(1 << 20), length: 1 << 20) == .short)
      return try await file.length()
    }
    #expect(outcome == .success(0))
    var info = stat()
    fstat(file.descriptor, &info)
    #expect(info.st_blocks == 0)
  }

  @Test(arguments: [EPERM, EIO, EOPNOTSUPP])
  func `a file reaches as far as asked for though it gets no storage`(error: Int32) throws {
    let temporary = try TemporaryFile()
    let file = try RingHostFile.open(temporary.path, readOnly: false)
    try #require(file.isDirect && !file.isInMemory, "/var/tmp is memory, or has no direct I/O")
    let outcome = try withoutReservations(error) { () async throws(Errno) in
      #expect(try await file.reserve(at: HostOffset(1 << 20), length: 1 << 20) == .extended)
      let ones = IOBuffer(count: 4096)
      memset(ones.base, 1, ones.count)
      try await file.write(from: ones.data, at: HostOffset((1 << 20) + 4096))
      return try await file.length()
    }
    #expect(outcome == .success(2 << 20))
    // What was refused was storage: there is none but for the data and the last byte.
    var info = stat()
    fstat(file.descriptor, &info)
    #expect(info.st_blocks <= 64)
  }

  @Test func `a host without room for holes only inside the file still reserves`() throws {
    let temporary = try TemporaryFile()
    let file = try RingHostFile.open(temporary.path, readOnly: false)
    try #require(file.isDirect && !file.isInMemory, "/var/tmp is memory, or has no direct I/O")
    let outcome = Outcome()
    let thread = try WorkerThread(name: "no-keep-size") {
      // As NFS 4.2: no allocation that keeps the size.
      guard
        forbid(
          fallocateNumber, EOPNOTSUPP, argument: 1, isNot: false, Int32(QUBLK_FALLOC_KEEP_SIZE))
      else {
        return
      }
      outcome.value = Result { () throws(Errno) in
        try runBlocking { () async throws(Errno) in
          try await file.setLength(65536)
          #expect(try await file.allocateHoles(at: HostOffset(0), length: 65536))
          #expect(try await !file.allocateHoles(at: HostOffset(0), length: 131072))
          #expect(try await file.reserve(at: HostOffset(65536), length: 65536) == .stored)
          return try await file.length()
        }
      }
    }
    thread.join()
    #expect(outcome.value == .success(131072))
    var info = stat()
    fstat(file.descriptor, &info)
    #expect(info.st_blocks >= 256)
  }

  @Test func `where holes are not told, what is all zeros is written again`() throws {
    let temporary = try TemporaryFile()
    let file = try RingHostFile.open(temporary.path, readOnly: false)
    try #require(!file.isInMemory, "/var/tmp is memory")
    let data = IOBuffer(count: 4096)
    memset(data.base, 7, data.count)
    try runBlocking { () async throws(Errno) in
      try await file.setLength(1 << 20)
      try await file.write(from: data.data, at: HostOffset(131072 + 4096))
      try await file.rewriteZeroes(0, 300_032)
      try await file.sync()
    }
    var info = stat()
    fstat(file.descriptor, &info)
    #expect(info.st_blocks >= 300_032 / 512 && info.st_blocks < 1024)
    let back = IOBuffer(count: 1 << 20)
    try runBlocking { () async throws(Errno) in
      try await file.read(into: back.data, at: HostOffset(0))
    }
    back.withBytes { bytes in
      for index in bytes.indices {
        let isData = (135168..<139264).contains(index)
        if bytes[index] != (isData ? 7 : 0) { Issue.record("byte \(index) is \(bytes[index])") }
      }
    }
  }

  @Test func `holes are filled where the host does not tell where they are`() throws {
    let temporary = try TemporaryFile()
    let file = try RingHostFile.open(temporary.path, readOnly: false)
    try #require(!file.isInMemory, "/var/tmp is memory")
    let outcome = Outcome()
    let thread = try WorkerThread(name: "no-seek-hole") {
      guard forbid(seekNumber, EINVAL, argument: 2, isNot: false, seekHole) else { return }
      outcome.value = Result { () throws(Errno) in
        try runBlocking { () async throws(Errno) in
          try await file.setLength(65536)
          try await file.fillHoles(at: HostOffset(0), length: 65536)
          try await file.sync()
          return try await file.length()
        }
      }
    }
    thread.join()
    #expect(outcome.value == .success(65536))
    var info = stat()
    fstat(file.descriptor, &info)
    #expect(info.st_blocks >= 128)
  }

  /// Runs `body` on a thread on which fallocate(2) fails, but for the allocation of a single byte.
  private func withoutReservations(
    _ error: Int32, _ body: @escaping @Sendable () async throws(Errno) -> UInt64
  ) throws -> Result<UInt64, Errno>? {
    let outcome = Outcome()
    let thread = try WorkerThread(name: "no-fallocate") {
      guard forbid(fallocateNumber, error) else { return }
      outcome.value = Result { () throws(Errno) in try runBlocking(body) }
    }
    thread.join()
    return outcome.value
  }

  private final class Outcome: @unchecked Sendable {  // why: read after the thread has been joined
    var value: Result<UInt64, Errno>?
  }
}

/// Makes a system call fail on the calling thread, from now on, where one of its arguments is, or is not,
/// a value: by default fallocate(2) of more than one byte.
private func forbid(
  _ call: UInt32, _ error: Int32, argument: UInt32 = 3, isNot: Bool = true, _ value: Int32 = 1
) -> Bool {
  let words: (load: UInt16, equal: UInt16, end: UInt16) = (0x20, 0x15, 0x06)
  let (allow, fail) = (0x7fff_0000 as UInt32, 0x0005_0000 | UInt32(error))
  // Of struct seccomp_data: nr at 0, the lower halves of the arguments from 16 on.
  var filter = [
    sock_filter(code: words.load, jt: 0, jf: 0, k: 0),
    sock_filter(code: words.equal, jt: 0, jf: 3, k: call),
    sock_filter(code: words.load, jt: 0, jf: 0, k: 16 + argument * 8),
    sock_filter(
      code: words.equal, jt: isNot ? 1 : 0, jf: isNot ? 0 : 1, k: UInt32(bitPattern: value)),
    sock_filter(code: words.end, jt: 0, jf: 0, k: fail),
    sock_filter(code: words.end, jt: 0, jf: 0, k: allow),
  ]
  typealias Call = @convention(c) (Int32, UInt, UInt, UInt, UInt) -> Int32
  guard let symbol = dlsym(nil, "prctl") else { return false }
  let prctl = unsafeBitCast(symbol, to: Call.self)
  return filter.withUnsafeMutableBufferPointer { filter in
    var program = sock_fprog(len: UInt16(filter.count), filter: filter.baseAddress)
    return withUnsafeMutablePointer(to: &program) { program in
      // PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP with SECCOMP_MODE_FILTER.
      prctl(38, 1, 0, 0, 0) == 0 && prctl(22, 2, UInt(bitPattern: program), 0, 0) == 0
    }
  }
}

#if arch(x86_64)
  private let fallocateNumber: UInt32 = 285
  private let seekNumber: UInt32 = 8
#else
  private let fallocateNumber: UInt32 = 47
  private let seekNumber: UInt32 = 62
#endif

/// SEEK_HOLE of lseek(2).
private let seekHole: Int32 = 4

private struct sock_filter {
  var code: UInt16
  var jt: UInt8
  var jf: UInt8
  var k: UInt32
}

private struct sock_fprog {
  var len: UInt16
  var filter: UnsafeMutablePointer<sock_filter>?
}
