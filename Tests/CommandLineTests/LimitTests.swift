import HostFiles
import CPlatform
import Glibc
import TestTools
import Testing

@testable import Daemon

/// What `add` compares with the limits of the system.
@Suite struct LimitTests {
  @Test func `the least memory limit of a cgroup and of those above it counts`() throws {
    let directory = try TemporaryDirectory()
    defer { withExtendedLifetime(directory) {} }
    let root = directory.path
    // The root has none.
    for (name, text) in [("a", "1048576\n"), ("a/b", "max\n"), ("a/b/c", "4194304\n")] {
      try #require(mkdir(directory.file(name), 0o700) == 0)
      try write(Array(text.utf8), to: directory.file("\(name)/memory.max"))
    }
    let limit = MemoryLimit(bytes: 1 << 20, file: "\(root)/a/memory.max")
    #expect(MemoryLimit.least(of: "/a/b/c", root: root) == limit)
    #expect(MemoryLimit.least(of: "/a/b", root: root) == limit)
    #expect(MemoryLimit.least(of: "/", root: root) == nil)
    #expect(MemoryLimit.least(of: "/gone", root: root) == nil)
  }

  @Test func `a device that does not fit is refused, and one that does is held to the limit`() {
    let need = MemoryNeed(fixed: 100 << 20, perRequest: 2 << 20, queues: 2, depth: 128)
    #expect(need.least == 116 << 20)
    let limit = { MemoryLimit(bytes: $0, file: "/f/memory.max") }
    let error = #expect(throws: CommandError.self) { try need.check(limit((116 << 20) - 1)) }
    #expect(
      error?.text
        == "/f/memory.max is 121634815 bytes, serving needs 121634816: raise it, or add with a smaller "
        + "-q, -d or --cache-size")
    #expect(throws: Never.self) { try need.check(limit(116 << 20)) }
    #expect(need.servingLimit(limit(116 << 20)) == 4)
    #expect(need.servingLimit(limit(200 << 20)) == 25)
    #expect(need.servingLimit(limit(612 << 20)) == nil)
    #expect(need.servingLimit(limit(.max)) == nil)
  }

  @Test func `a shallow queue needs no more than it has tags`() {
    let need = MemoryNeed(fixed: 1 << 20, perRequest: 1 << 20, queues: 1, depth: 2)
    #expect(need.least == 3 << 20)
    #expect(need.servingLimit(MemoryLimit(bytes: 3 << 20, file: "")) == nil)
  }

  @Test func `the time limit is taken away, and descriptors are counted`() {
    #expect(qublk_process_lift_time_limit() == 0)
    #expect(qublk_process_spare_descriptors(3) == 0)
    #expect(qublk_process_descriptor_limit() > 3)
  }
}
