import TestTools
import Testing

/// Names of files and option lists, judged as qemu-img judges them; what is refused changes no file.
@Suite(.enabled(if: hasQEMU, "needs qemu-img and qemu-io")) struct NameTests {
  private let directory: TemporaryDirectory

  init() throws { directory = try TemporaryDirectory() }

  private func sh(_ line: String) throws -> Outcome {
    try run("bash", "-c", "cd \(directory.path); qublk=\(try qublkPath())\n\(line)")
  }

  private func mustSh(_ line: String) throws {
    let outcome = try sh(line)
    #expect(outcome.status == 0, "\(line): \(outcome.output) \(outcome.errors)")
  }

  @Test(arguments: [
    ("a:b", "protocol \"a\" is not supported"), ("file:base", "before an absolute path only"),
    ("json:{}", "\"json:\" names are not supported"),
    ("nbd://host/x", "protocol \"nbd\" is not supported"),
  ])
  func aBackingNameThatCannotBeOpenedIsRefused(_ name: String, _ reason: String) throws {
    try mustSh("qemu-img create -q -f qcow2 base 1M; cp base a:b")
    let outcome = try sh("$qublk create -q -b '\(name)' -F qcow2 top")
    #expect(outcome.status == 1)
    #expect(outcome.errors.contains(name) && outcome.errors.contains(reason), "\(outcome.errors)")
    try mustSh("[ ! -e top ]")
  }

  @Test func anAbsoluteFileURLIsAPath() throws {
    try mustSh(
      """
      set -e; qemu-img create -q -f qcow2 base 1M; qemu-io -c 'write -P 5 0 64k' base
      $qublk create -q -b "file:$PWD/base" -F qcow2 top
      $qublk io -r -c 'read -P 5 0 64k' top; qemu-io -r -c 'read -P 5 0 64k' top
      qemu-img create -q -f qcow2 -b "file:$PWD/base" -F qcow2 theirs; cmp top theirs
      # The same file under this name is still the same file.
      ! $qublk create -q -b "file:$PWD/base" -F qcow2 base
      """)
  }

  @Test func aFileURLOnTheCommandLineIsItsPath() throws {
    try mustSh(
      """
      set -e; qemu-img create -q -f qcow2 x 1M
      $qublk info file:x | grep -qx 'image: x'; $qublk check -q file:x
      $qublk io -c 'write -P 1 0 64k' file:x; qemu-io -c 'read -P 1 0 64k' x
      $qublk create -q -f qcow2 file:y 1M; [ -e y ]
      """)
  }

  @Test(arguments: ["cluster_size=64k,", ",cluster_size=64k", "", ",", "a=b,,,"])
  func anOptionListWithALooseCommaIsRefused(_ list: String) throws {
    let ours = try sh("$qublk create -q -f qcow2 -o '\(list)' x 1M")
    let theirs = try sh("qemu-img create -q -f qcow2 -o '\(list)' x 1M")
    #expect(ours.status == 1 && theirs.status == 1)
    #expect(ours.errors.contains("invalid option list \"\(list)\""), "\(ours.errors)")
    try mustSh("[ ! -e x ]")
  }

  @Test(arguments: [
    "-o data_file=d,cluster_size=3k x 1M", "-o data_file=d,compat=0.10 x 1M",
    "-o data_file=d,data_file_raw=on -b base -F qcow2 x", "-o data_file=d none/x 1M",
    "-o data_file=x x 1M", "-o data_file=d x 1E", "-o data_file=d x 7E", "-o data_file=d fifo 1M",
    "-o data_file=fifo x 1M", "-o data_file=none/d x 1M", "-o data_file=d x",
    "-o data_file=d,encrypt.format=luks x 1M", "-o data_file=d locked 1M",
    "-o data_file=locked x 1M",
  ])
  func aRefusedCreateChangesNoFile(_ arguments: String) throws {
    for isThere in [false, true] {
      try mustSh("rm -f *; qemu-img create -q -f qcow2 base 1M; cp base locked; mkfifo fifo")
      if isThere { try mustSh("echo data >d; echo image >x") }
      let outcome = try sh(
        """
        list() { for f in *; do [ -p $f ] || echo $f $(stat -c %s $f) $(sha256sum <$f); done; }
        list >/tmp/before.$$
        qemu-io -c 'sleep 20000' locked >/dev/null 2>&1 & sleep 0.4
        timeout 10 $qublk create -q -f qcow2 \(arguments); status=$?
        list >/tmp/after.$$; kill $! 2>/dev/null
        cmp /tmp/before.$$ /tmp/after.$$; same=$?; cat /tmp/after.$$; rm /tmp/before.$$ /tmp/after.$$
        [ $status = 1 ] && [ $same = 0 ]
        """)
      #expect(outcome.status == 0, "\(arguments): \(outcome.output) \(outcome.errors)")
    }
  }

  @Test func checkOfAFileOfAnotherFormatEndsWith63() throws {
    try mustSh("truncate -s 1M x.raw; : >empty")
    for (words, status) in [
      ("x.raw", 63), ("-f raw x.raw", 63), ("-f qcow2 x.raw", 1), ("none", 1),
    ] {
      let ours = try sh("$qublk check \(words)")
      let theirs = try sh("qemu-img check \(words)")
      #expect(ours.status == status && theirs.status == status, "\(words): \(ours) \(theirs)")
    }
  }

  @Test func aRepairNamesWhatStays() throws {
    let outcome = try sh(
      """
      qemu-img create -q -f qcow2 x 64M; qemu-io -c 'write -P 1 0 128k' x >/dev/null
      printf '\\x80\\0\\0\\0\\0\\x90\\0\\0' | dd of=x bs=1 seek=$((0x40008)) conv=notrunc status=none
      $qublk check -r all x
      """)
    #expect(outcome.status == 2)
    #expect(outcome.errors.contains("guest data at host offset 0x900000"), "\(outcome.errors)")
    #expect(outcome.errors.contains("not repaired: nothing tells where"))
    #expect(outcome.errors.contains("qublk add --read-only"))
    #expect(!outcome.errors.contains("salvage"))
  }
}
