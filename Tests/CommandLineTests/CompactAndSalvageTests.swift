import TestTools
import Testing

/// `qublk compact` and `qublk salvage` as programs: what they print, how they end, and what a kill leaves.
@Suite(.enabled(if: hasQEMU, "needs qemu-img and qemu-io")) struct CompactAndSalvageTests {
  let directory: TemporaryDirectory

  init() throws { directory = try TemporaryDirectory(in: "/dev/shm") }

  private func sh(_ line: String) throws -> Outcome {
    try run("bash", "-c", "cd \(directory.path); qublk=\(try qublkPath())\n\(line)")
  }

  @discardableResult private func mustSh(_ line: String) throws -> String {
    let outcome = try sh(line)
    try #require(outcome.status == 0, "\(line): \(outcome.output) \(outcome.errors)")
    return outcome.output
  }

  private func fill(_ megabytes: Int = 2) throws {
    try mustSh(
      """
      rm -f x; qemu-img create -q -f qcow2 -o cluster_size=4k x 64M
      qemu-io -c 'write -P 1 0 \(megabytes)M' -c 'write -P 2 20M \(megabytes)M' x >/dev/null
      qemu-img snapshot -c a x; qemu-io -c 'write -P 3 1M \(megabytes)M' x >/dev/null
      qemu-img snapshot -c b x; qemu-io -c 'write -P 4 20M \(megabytes)M' -c 'discard 0 1M' x >/dev/null
      qemu-img snapshot -d a x; qemu-img convert -O raw x raw; qemu-img convert -l b -O raw x old
      """)
  }

  @Test func compactSaysWhatItGains() throws {
    try fill()
    let before = try mustSh("stat -c %s x | tr -d '\\n'")
    let trial = try sh("$qublk compact -n x")
    #expect(trial.status == 0)
    #expect(trial.output.hasPrefix("The file could go from \(before) to "))
    #expect(try mustSh("stat -c %s x | tr -d '\\n'") == before)
    let json = try sh("$qublk compact --output json x")
    #expect(json.status == 0, "\(json.errors)")
    let after = try mustSh("stat -c %s x | tr -d '\\n'")
    #expect(json.output.contains("\"bytes-before\": \(before)"))
    #expect(json.output.contains("\"bytes-after\": \(after)"))
    #expect(trial.output.contains(" to \(after) bytes"))
    #expect(Int(after) ?? 0 < Int(before) ?? 0)
    try mustSh(
      "qemu-img check -q x; qemu-img compare -q x raw; qemu-img convert -l b -O raw x o; cmp o old")
    #expect(
      try sh("$qublk compact x").output
        == "The file stays at \(after) bytes: nothing is to be gained.\n")
    #expect(try sh("$qublk compact -q x").output == "")
  }

  @Test func compactRefuses() throws {
    try fill()
    for (line, text) in [
      ("$qublk compact -f raw raw", "a raw image has no clusters to move"),
      ("$qublk compact missing", "No such file"),
      (
        "printf '\\0\\0\\0\\0\\0\\0\\0\\2' | dd of=x bs=1 seek=72 conv=notrunc status=none; $qublk compact x",
        "marked corrupt: repair it first with \"qublk check -r all\""
      ),
    ] {
      let outcome = try sh(line)
      #expect(outcome.status == 1)
      #expect(outcome.errors.contains(text), "\(outcome.errors)")
    }
    try fill()
    let used = try sh(
      "qemu-io -r -c 'sleep 3000' x >/dev/null & sleep 0.5; $qublk compact x; s=$?; wait; exit $s")
    #expect(used.status == 1)
    #expect(used.errors.contains("x: "))
  }

  @Test func aKilledCompactionLosesNothing() throws {
    let seed = testSeed("compact kill", fallback: .random(in: 0...UInt64.max))
    var random = SeededGenerator(seed: seed)
    var killed = 0
    for _ in 0..<12 {
      try fill(6)
      let delay = Double(random.below(120)) / 1000
      let outcome = try sh("timeout -s KILL \(delay + 0.004) $qublk compact x")
      if outcome.status != 0 { killed += 1 }
      let check = try sh("qemu-img check x")
      #expect(check.status == 0 || check.status == 3, "\(check.output)")
      try mustSh("qemu-img compare -q x raw; qemu-img convert -l b -O raw x o; cmp o old")
      try mustSh("$qublk compact -q x && qemu-img check -q x && qemu-img compare -q x raw")
    }
    print("compact: \(killed) of 12 were killed before the end")
  }

  @Test func salvageListsWhatIsLost() throws {
    try fill()
    try mustSh("$qublk salvage x whole >said; cmp whole raw; grep -q 'All 67108864 bytes' said")
    // The entry of the first L2 table for the guest's cluster 300 leads far behind the file.
    try mustSh(
      """
      l1=$(od -An -t u8 --endian=big -j 40 -N 8 x | tr -d ' ')
      l2=$(( $(od -An -t u8 --endian=big -j $l1 -N 8 x | tr -d ' ') & 0xfffffffffffe00 ))
      printf '\\200\\0\\177\\0\\0\\0\\0\\0' | dd of=x bs=1 seek=$((l2 + 300 * 8)) conv=notrunc status=none
      cp x y
      """)
    let human = try sh("$qublk salvage x out")
    #expect(human.status == 3, "\(human.errors)")
    #expect(
      human.output.contains(
        "lost: 4096 bytes at 1228800: wrong L2 entry: beyond the end of the file\n"),
      "\(human.output)")
    try mustSh(
      "dd if=/dev/zero of=raw bs=4096 seek=300 count=1 conv=notrunc status=none; cmp out raw; cmp x y"
    )
    let json = try sh("$qublk salvage --output json -O qcow2 x out.qcow2")
    #expect(json.status == 3)
    #expect(json.output.contains("\"lost-bytes\": 4096"))
    try mustSh("qemu-img check -q out.qcow2; qemu-img compare -q out.qcow2 raw")
    try mustSh("$qublk salvage -l b x out; cmp out old")
    let itself = try sh("$qublk salvage x x")
    #expect(itself.status == 1)
    #expect(itself.errors.contains("it is the image itself"))
    try mustSh("cmp x y")
  }

  @Test func whatNoTableLeadsToIsNotRead() throws {
    // Of 100 TiB, the L1 table is lost behind its first 32 KiB: to read zeros of the rest would take hours.
    try mustSh(
      """
      qemu-img create -q -f qcow2 x 100T; qemu-io -c 'write -P 1 0 64k' x >/dev/null
      truncate -s 64k x
      """)
    let outcome = try sh("timeout 60 $qublk salvage --l1-offset 32k -O qcow2 x out")
    #expect(outcome.status == 3, "\(outcome.errors)")
    let lost = (100 << 40) - 4096 * (512 << 20)
    #expect(outcome.output.contains("\(lost) of \(100 << 40) bytes of the disk are lost"))
    try mustSh("qemu-img check -q out")
  }

  @Test func salvageGoesOnWithoutTheBackingFile() throws {
    try mustSh(
      """
      qemu-img create -q -f qcow2 base 4M; qemu-io -c 'write -P 1 0 4M' base >/dev/null
      qemu-img create -q -f qcow2 -b base -F qcow2 x 4M; qemu-io -c 'write -P 2 1M 1M' x >/dev/null
      qemu-img convert -O raw x raw; $qublk salvage x out; cmp out raw
      """)
    for line in ["$qublk salvage --no-backing x out", "mv base gone; $qublk salvage x out"] {
      let outcome = try sh(line)
      #expect(outcome.status == 3, "\(outcome.errors)")
      #expect(outcome.output.contains("lost: 1048576 bytes at 0: the backing file has it\n"))
      #expect(outcome.output.contains("lost: 2097152 bytes at 2097152: the backing file has it\n"))
      try mustSh("cmp -n 1048576 -i 1048576 out raw")
    }
  }

  @Test func salvageUnlocks() throws {
    try mustSh(
      """
      printf abc >key; s="--object secret,id=s,file=key"
      o="--image-opts driver=qcow2,file.filename=x,encrypt.key-secret=s"
      luks=encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10
      for try in $(seq 40); do qemu-img create -q $s -f qcow2 -o $luks x 4M && break; done
      qemu-io $s -c 'write -P 2 1M 1M' $o >/dev/null; qemu-img convert $s -O raw $o raw
      $qublk salvage $s $o out; cmp out raw
      """)
    let locked = try sh("$qublk salvage x out")
    #expect(locked.status == 1)
    #expect(locked.errors.contains("the image is encrypted"))
  }

  @Test func salvageTakesNoWrongOptions() throws {
    try fill()
    for option in ["--cluster-size 3k", "--size 0", "--l1-offset 100", "--cluster-size 4M"] {
      let outcome = try sh("$qublk salvage \(option) x out")
      #expect(outcome.status == 1)
      #expect(outcome.errors.contains("expected"), "\(outcome.errors)")
    }
  }
}
