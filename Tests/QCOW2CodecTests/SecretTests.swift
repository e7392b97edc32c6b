import Glibc
import Testing

@testable import QCOW2Codec

@Suite struct SecretTests {
  @Test func aSecretHoldsItsBytes() {
    #expect(Secret("passphrase").revealed == Array("passphrase".utf8))
    #expect(Secret([]).revealed == [])
    #expect(Secret([UInt8](repeating: 4, count: 10000)).revealed.count == 10000)
  }

  @Test func aSecretThatCannotBeFilledPassesTheErrorOn() {
    #expect(throws: CipherError.missing(algorithm: "x")) {
      try Secret(count: 5) { (_) throws(CipherError) in throw .missing(algorithm: "x") }
    }
  }

  @Test("Without memory for it there is no secret, and an error that says so")
  func withoutMemoryThereIsNoSecret() async {
    await #expect(processExitsWith: .success) {
      // Of the address space, leave what small things need.
      var limit = rlimit()
      try #require(getrlimit(__rlimit_resource_t(RLIMIT_AS.rawValue), &limit) == 0)
      limit.rlim_cur = rlim_t(try Self.mappedBytes() + (4 << 20))
      try #require(setrlimit(__rlimit_resource_t(RLIMIT_AS.rawValue), &limit) == 0)
      #expect(throws: CipherError.noMemory(bytes: 16 << 20)) {
        try Secret(count: 16 << 20) { (_) throws(CipherError) in }
      }
      #expect(throws: LUKSError.cipher(.noMemory(bytes: 9 << 20))) {
        try Secret(count: 9 << 20) { (_) throws(LUKSError) in }
      }
    }
  }

  /// What this process has mapped.
  private static func mappedBytes() throws -> Int {
    let file = try #require(fopen("/proc/self/statm", "re"))
    defer { fclose(file) }
    var pages = 0
    withUnsafeMutablePointer(to: &pages) { pages in
      withVaList([pages]) { _ = vfscanf(file, "%ld", $0) }
    }
    try #require(pages > 0)
    return pages * sysconf(Int32(_SC_PAGESIZE))
  }

  /// The flags that the kernel shows for the mapping at an address; nil where it shows none.
  private func flags(at address: UInt) -> [Substring]? {
    guard let file = fopen("/proc/self/smaps", "re") else { return nil }
    defer { fclose(file) }
    var line = [CChar](repeating: 0, count: 4096)
    var isInside = false
    while fgets(&line, Int32(line.count), file) != nil {
      let text = String(
        decoding: line.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
      let bounds = text.prefix { $0 != " " }.split(separator: "-").map { UInt($0, radix: 16) }
      if bounds.count == 2, let low = bounds[0], let high = bounds[1] {
        isInside = (low..<high).contains(address)
      } else if isInside, text.hasPrefix("VmFlags:") {
        return text.dropFirst(8).split { $0 == " " || $0 == "\n" }
      }
    }
    return nil
  }

  @Test func aSecretStaysOutOfCoreDumps() throws {
    let secret = Secret("in memory only")
    let address = secret.withBytes { UInt(bitPattern: $0.baseAddress) }
    guard let flags = flags(at: address) else { return print("skipped: no VmFlags here") }
    #expect(flags.contains("dd"))
  }
}
