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

  /// Runs `body` on a thread on which fallocate(2) fails, but for the allocation of a single byte.
  private func withoutReservations(
    _ error: Int32, _ body: @escaping @Sendable () async throws(Errno) -> UInt64
  ) throws -> Result<UInt64, Errno>? {
    let outcome = Outcome()
    let thread = try WorkerThread(name: "no-fallocate") {
      guard forbidFallocate(error) else { return }
      outcome.value = Result { () throws(Errno) in try runBlocking(body) }
    }
    thread.join()
    return outcome.value
  }

  private final class Outcome: @unchecked Sendable {  // why: read after the thread has been joined
    var value: Result<UInt64, Errno>?
  }
}

/// Makes fallocate(2) of more than one byte fail on the calling thread, from now on.
private func forbidFallocate(_ error: Int32) -> Bool {
  let words: (load: UInt16, equal: UInt16, end: UInt16) = (0x20, 0x15, 0x06)
  let (allow, fail) = (0x7fff_0000 as UInt32, 0x0005_0000 | UInt32(error))
  // Of struct seccomp_data: nr at 0, the lower half of the fourth argument at 16 + 3 * 8.
  var filter = [
    sock_filter(code: words.load, jt: 0, jf: 0, k: 0),
    sock_filter(code: words.equal, jt: 0, jf: 3, k: fallocateNumber),
    sock_filter(code: words.load, jt: 0, jf: 0, k: 40),
    sock_filter(code: words.equal, jt: 1, jf: 0, k: 1),
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
#else
  private let fallocateNumber: UInt32 = 47
#endif

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
