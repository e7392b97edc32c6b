import BlockCore
import Glibc
import TestTools
import Testing

@testable import DiskImages

/// What images may name [SEC-1, SEC-3].
@Suite(.enabled(if: hasQEMU, "needs qemu-img and qemu-io")) struct PolicyTests {
  let scratch: Scratch

  init() throws {
    scratch = try Scratch()
    try scratch.run(
      """
      mkdir in in/sub out in-not
      for f in in/base in/sub/base out/base in-not/base; do qemu-img create -q -f raw $f 1M; done
      ln -s ../out/base in/link
      ln -s ../in/base out/link
      ln -s in alias
      """)
  }

  private func refused(_ name: String, _ policy: BackingPolicy) throws -> Bool {
    try scratch.run("rm -f in/top; qemu-img create -q -f qcow2 -u -b '\(name)' -F raw in/top 1M")
    var options = scratch.options("in/top")
    options.backingPolicy = policy
    do throws(DiskImageError) {
      _ = try OpenChain(options)
      return false
    } catch {
      switch error.reason {
      case .notAllowed, .notTrusted: break
      default: throw error
      }
      #expect(scratch.openFiles == 0)
      return true
    }
  }

  @Test func denyAllowsNothing() throws {
    for name in ["base", "../out/base", scratch.file("in/base")] {
      #expect(try refused(name, .deny))
    }
  }

  @Test func anyAllowsEverything() throws {
    for name in ["base", "../out/base", "link", scratch.file("in/sub/base")] {
      #expect(try !refused(name, .any))
    }
  }

  @Test(arguments: [
    ("base", false), ("./base", false), ("sub/../base", false), ("../alias/base", false),
    ("../out/link", false), ("link", true), ("sub/base", true), ("../out/base", true),
    ("../in-not/base", true),
  ])
  func sameDirectoryJudgesTheRealPlace(_ name: String, _ isRefused: Bool) throws {
    #expect(try refused(name, .sameDirectory) == isRefused)
  }

  @Test(arguments: [
    ("base", false), ("sub/base", false), ("../alias/sub/base", false), ("../out/link", false),
    ("link", true), ("../out/base", true), ("../in-not/base", true),
  ])
  func aDirectoryAllowsWhatIsBelowIt(_ name: String, _ isRefused: Bool) throws {
    let policy = try BackingPolicy(parsing: [scratch.file("alias")], callers: [])
    #expect(try refused(name, policy) == isRefused)
  }

  @Test func severalPathsAllowWhatEitherAllows() throws {
    let policy = try BackingPolicy(
      parsing: [scratch.file("in/sub"), scratch.file("out/base")], callers: [])
    #expect(try !refused("sub/base", policy))
    #expect(try !refused("link", policy))
    #expect(try refused("base", policy))
  }

  @Test func magicLinksAreSeenThrough() throws {
    #expect(try refused("/proc/self/root\(scratch.file("out/base"))", .sameDirectory))
    #expect(try refused("/proc/self/exe", .sameDirectory))
  }

  @Test(arguments: [("base", true), ("../out/base", false), ("link", false)])
  func imagesOfOthersNameWhatIsBesideThem(_ name: String, _ isAllowed: Bool) throws {
    let (own, others) = (geteuid(), geteuid() + 1)
    #expect(try !refused(name, .trusting([own])))
    #expect(try !refused(name, .trusting([others, own])))
    #expect(try refused(name, .trusting([others])) == !isAllowed)
  }

  @Test func eachImageOfAChainIsJudgedByItsOwner() throws {
    try scratch.run(
      """
      qemu-img create -q -f qcow2 -b ../out/base -F raw in/middle
      qemu-img create -q -f qcow2 -b middle -F qcow2 in/top
      """)
    var options = scratch.options("in/top")
    options.backingPolicy = .trusting([geteuid()])
    #expect(try OpenChain(options).files.count == 3)
    guard chown(scratch.file("in/middle"), 12345, gid_t.max) == 0 else { return }
    let base = scratch.file("out/base")
    #expect(
      openMessage(options)
        == "in/top: backing file \"\(scratch.file("in/middle"))\": backing file \"../out/base\": the image that names it belongs to "
        + "user 12345, who is not you, and \(base) is not in its directory: add --backing-policy "
        + "\(scratch.file("out/")), or --backing-policy any, if you trust the image")
    options.backingPolicy = try BackingPolicy(parsing: [scratch.file("out/")], callers: [])
    options.backingPolicy.rules.append(.sameDirectory)
    #expect(try OpenChain(options).files.count == 3)
  }

  @Test func dataFilesAreJudgedButNotThoseOfTheUser() throws {
    try scratch.run("cd in; qemu-img create -q -f qcow2 -o data_file=../out/data top 1M")
    try scratch.run("qemu-img create -q -f raw out/data 1M")
    var options = scratch.options("in/top")
    options.currentDirectory = .success(scratch.file("in"))
    options.backingPolicy = .sameDirectory
    #expect(
      openMessage(options)
        == "in/top: data file \"../out/data\": \(scratch.file("out/data")) is not allowed by "
        + "--backing-policy")
    options.dataFile = scratch.file("out/data")
    #expect(try OpenChain(options).files.count == 2)
  }

  @Test func valuesOfTheOption() throws {
    #expect(try BackingPolicy(parsing: [], callers: [0, 7]) == .trusting([0, 7]))
    #expect(try BackingPolicy(parsing: ["deny"], callers: []) == .deny)
    #expect(
      try BackingPolicy(parsing: ["same-directory", scratch.file("alias")], callers: []).rules
        == [.sameDirectory, .below(scratch.file("in"))])
    #expect(throws: BackingPolicy.BadValue(value: "deny", problem: .denyBesideOthers)) {
      try BackingPolicy(parsing: ["any", "deny"], callers: [])
    }
    #expect(throws: BackingPolicy.BadValue(value: "all", problem: .unknown)) {
      try BackingPolicy(parsing: ["all"], callers: [])
    }
    #expect(throws: BackingPolicy.BadValue(value: "/nowhere", problem: .path(.noEntry))) {
      try BackingPolicy(parsing: ["/nowhere"], callers: [])
    }
  }
}
