import CPlatform
import DiskImages
import Glibc
import JSON
import TestTools
import Testing

@testable import Daemon

private let isRoot = geteuid() == 0

/// What a daemon can no longer do once it serves: each thing is tried, by a process of Tests/confined.
@Suite(.enabled(if: isRoot, "needs root: so that what is refused is refused by the sandbox"))
struct SandboxTests {
  /// The exit status of a process that a filter of system calls has killed.
  private static let killed = 128 + Int32(QUBLK_BREACH_SIGNAL)

  private func attempt(_ words: String...) throws -> Outcome {
    try Subprocess(try builtProgram("confined"), ["try"] + words).finish(within: 30)
  }

  @Test(arguments: [
    "execute", "new-process", "new-user-namespace", "trace", "mount", "internet-socket",
    "unix-socket", "signal-other", "signal-thread-of-other", "raise-capability",
    "become-other-user", "make-code", "turn-into-code", "read-memory-of-other", "open-by-handle",
    "load-kernel-program",
  ])
  func aCallByWhichAProcessGetsAtOthersKills(_ name: String) throws {
    #expect(try attempt(name).status == Self.killed)
    // A thread that was there before the sandbox is in it, too.
    #expect(try attempt("before", name).status == Self.killed)
  }

  /// All of `breaches` in CShims/CPlatform/callfilter.c that every architecture has.
  private static let breaches = [
    "execve", "execveat", "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise",
    "kcmp", "kill", "tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_open", "pidfd_getfd",
    "pidfd_send_signal", "socket", "socketpair", "connect", "bind", "listen", "mount", "umount2",
    "pivot_root", "chroot", "open_tree", "move_mount", "fsopen", "fsconfig", "fsmount", "fspick",
    "unshare", "setns", "open_by_handle_at", "mknodat", "swapon", "swapoff", "quotactl", "acct",
    "setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid", "setfsgid",
    "setgroups", "capset", "add_key", "request_key", "keyctl", "bpf", "perf_event_open",
    "userfaultfd", "fanotify_init", "init_module", "finit_module", "delete_module", "kexec_load",
    "reboot", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "sethostname",
    "setdomainname", "syslog", "personality", "memfd_create", "pkey_mprotect",
  ]
  private static let breachesOfX86 = [
    "fork", "vfork", "mknod", "iopl", "ioperm", "modify_ldt", "kexec_file_load",
  ]

  @Test func everyCallOnTheListOfBreachesKills() throws {
    var names = Self.breaches
    #if arch(x86_64)
      names += Self.breachesOfX86
    #endif
    for name in names { #expect(try attempt("call-\(name)").status == Self.killed, "\(name)") }
  }

  #if arch(x86_64)
    @Test(arguments: ["x32-call", "i386-call"])
    func aCallOfAnotherArchitectureKills(_ name: String) throws {
      #expect(try attempt(name).status == Self.killed)
    }
  #endif

  @Test(arguments: [
    ("read-foreign-file", EACCES), ("write-foreign-file", EACCES), ("look-into-process", EACCES),
    ("list-directory", EACCES), ("open-by-ring", EACCES), ("network-by-ring", ENETUNREACH),
    // Refused so that the C library takes the call whose flags can be seen.
    ("new-process-by-clone3", ENOSYS),
    // What a library may ask for one day must not cost a device.
    ("signal-by-descriptor", EPERM), ("allow-core-dump", EPERM), ("change-limit", EPERM),
    ("unknown-ioctl", EPERM), ("call-getpgid", EPERM), ("call-shmget", EPERM),
    ("call-getitimer", EPERM), ("call-cachestat", ENOSYS), ("call-mseal", ENOSYS),
    ("no-such-call", ENOSYS),
  ])
  func whatTheKernelCanRefuseIsRefused(_ name: String, _ error: Int32) throws {
    // Of a ring, Linux 7.0 refuses the operation itself.
    let isRing = name.hasSuffix("by-ring")
    for words in [[name], ["before", name]] {
      let outcome = try Subprocess(try builtProgram("confined"), ["try"] + words).finish(within: 30)
      #expect(outcome.succeeded)
      let found = Int32(outcome.output.dropLast()) ?? -1
      #expect(found == error || isRing && found == EACCES, "\(words): errno \(found)")
    }
  }

  @Test func aKernelWithoutLandlockHasTheOtherParts() throws {
    // It opens what is root's own.
    let lines = try attempt("lacking", "read-foreign-file").output.split(separator: "\n")
    #expect(lines.count == 2 && lines.last == "0", "\(lines)")
    let parts = try #require(lines.first).split(separator: " ").map(String.init)
    #expect(!parts.contains("landlock"))
    for part in ["no-new-privileges", "capabilities", "network", "seccomp"] {
      #expect(parts.contains(part))
    }
    #expect(try attempt("lacking", "before", "execute").status == Self.killed)
    let byRing = try attempt("lacking", "network-by-ring").output.split(separator: "\n").last
    #expect([String(ENETUNREACH), String(EACCES)].contains(String(byRing ?? "")))
  }

  /// The attempts are ones that root may make: without the sandbox they work, or fail for want of sense.
  @Test(arguments: [
    "read-foreign-file", "list-directory", "open-by-ring", "internet-socket",
    "unix-socket",
    "make-code", "turn-into-code", "network-by-ring",
  ])
  func withoutTheSandboxItWorks(_ name: String) throws {
    #expect(try attempt("free", name).output == "0\n")
  }

  @Test(.enabled(if: hasQEMU, "needs qemu-img")) func theJobsOfARunningDeviceNeedNoMore() throws {
    let directory = try TemporaryDirectory()
    let image = directory.path + "/a.qcow2"
    try mustRun("qemu-img", "create", "-q", "-f", "qcow2", image, "64M")
    try mustRunQEMUIO(["-f", "qcow2", "-c", "write 0 8M", image])
    // Of another user: without the right to override, root may not open it a second time.
    try #require(chown(image, 12345, gid_t.max) == 0 && chmod(image, 0o600) == 0)
    let outcome = try Subprocess(
      try builtProgram("confined"), ["jobs", image], joinsErrors: true
    ).finish(within: 60)
    #expect(outcome.succeeded, "\(outcome.output)")
    #expect(outcome.output.split(separator: "\n").count == 13)
    #expect(outcome.output.contains("a daemon in its sandbox opens no file by name"))
    #expect(try qublk("check", image).succeeded)
  }

  // MARK: The lookout

  @Test(arguments: [
    DeviceUse.mounted("/mnt", namespace: nil),
    .mounted("/a \"b\"\n", namespace: "sleep (process 7)"), .swap,
    .holder("dm-0", use: nil), .holder("md1", use: "swap space"),
    .kernel("loop3", use: "mounted on /x"),
    .opened(process: 42, name: "sleep"), .mapped(process: 2_147_483_647, name: "a b"), .claimed,
    .held,
  ])
  func whoUsesADeviceIsToldWhole(_ use: DeviceUse) throws {
    let text = use.json.text
    #expect(DeviceUse(try #require(JSONParser.parse(text))) == use)
  }

  @Test func noUseIsToldToo() {
    #expect(DeviceUse(.null) == nil)
    #expect(DeviceUse(.object([])) == .held)
    #expect(DeviceUse(.array([.string("later")])) == .held)
  }
}
