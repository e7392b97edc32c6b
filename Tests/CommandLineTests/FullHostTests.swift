import Glibc
import TestTools
import Testing

/// Images on real file systems that get full: what is acknowledged is stored, what is free is used.
///
/// QEMU's own tools do the same beside it. The file systems are mounted for the test.
@Suite(
  .enabled(if: hasQEMU && mayMount, "needs qemu-img, qemu-io, and root's right to mount"),
  .serialized) struct FullHostTests
{
  private let directory: TemporaryDirectory

  init() throws { directory = try TemporaryDirectory() }

  private func sh(_ line: String) throws -> Outcome {
    let program = try qublkPath()
    return try Subprocess(
      "bash",
      [
        "-c",
        """
        cd \(directory.path); qublk=\(program); mkdir -p m; trap 'umount m 2>/dev/null' EXIT
        \(Self.functions)
        \(line)
        """,
      ]
    ).finish(within: 120)
  }

  private func mustSh(_ line: String) throws {
    let outcome = try sh(line)
    #expect(outcome.status == 0, "\(outcome.output) \(outcome.errors)")
  }

  private static let functions = #"""
    slack=2
    fail() { echo "$*"; exit 1; }
    on_loop() { truncate -s "$1" e; shift; "$@" e || exit 1; mount -o loop e m || exit 1; }
    # The commands of N writes of a cluster each, one after another; then a flush.
    writes() { for ((i = 0; i < $1; i++)); do echo "write -P $((i % 255 + 1)) $((i * 64))k 64k"; done; echo flush; }
    # Commands that read what was acknowledged in an output of `io`.
    reads() { sed -n 's,^wrote 65536/65536 bytes at offset ,,p' "$1" \
      | while read -r at; do echo "read -P $((at / 65536 % 255 + 1)) $at 64k"; done; }
    # What qemu-img check counts in the image: mapped clusters, or leaks.
    mapped() { qemu-img check "$1" 2>&1 | sed -n 's,^\([0-9]*\)/[0-9]* = .*,\1,p'; }
    leaks() { qemu-img check "$1" 2>&1 | sed -n 's,^\([0-9]*\) leaked clusters.*,\1,p' | grep . || echo 0; }
    sound() { qemu-img check "$1" > check.out 2>&1 || fail "$1: $(cat check.out)"; }
    """#

  /// A file system of some 20 to 40 MiB of free room, and how images on it are used.
  private static let hosts = [
    "mount -t tmpfs -o size=20M tmpfs m",
    "on_loop 40M mkfs.ext4 -qFm0 -O ^has_journal",
    "on_loop 40M mkfs.ext4 -qFm0",
    "on_loop 40M mkfs.ext4 -qFm0 -O ^extents,^64bit,^has_journal",
    // In a nearly full allocation group XFS refuses a file of several extents what others still get: 26
    // clusters less than QEMU with direct I/O, none less through the page cache.
    "on_loop 300M mkfs.xfs -qf; fallocate -l 200M m/filler; slack=30",
  ]

  @Test(
    "What is acknowledged on a full host is stored, and as much as QEMU stores", arguments: hosts)
  func asMuchAsQEMU(host: String) throws {
    try mustSh(
      """
      \(host)
      writes 700 > commands
      qemu-img create -q -f qcow2 m/a 4G; qemu-io m/a < commands > /dev/null 2>&1
      theirs=$(mapped m/a); rm m/a
      for cache in writeback none; do
        qemu-img create -q -f qcow2 m/a 4G
        $qublk io -t $cache m/a < commands > out 2>&1
        acknowledged=$(grep -c ^wrote out)
        grep 'flush failed\\|^qublk' out && fail "$cache: an error besides the writes'"
        sound m/a
        ours=$(mapped m/a)
        [ "$ours" = "$acknowledged" ] || fail "$cache: $acknowledged acknowledged, $ours stored"
        [ "$ours" -ge $((theirs - slack)) ] || fail "$cache: $ours stored, QEMU stores $theirs"
        reads out | qemu-io m/a | grep -m1 'verification failed' && fail "$cache: contents"
        # In place, on a full host, after a new open.
        $qublk io -t $cache -c 'write -P 9 0 64k' -c flush m/a > out || fail "$cache: $(cat out)"
        sound m/a
        rm m/a
      done
      """)
  }

  @Test("A command without room on the host fails, and the image is as it was, at worst with leaks")
  func commandsWithoutRoom() throws {
    try mustSh(
      """
      mount -t tmpfs -o size=24M tmpfs m
      qemu-img create -q -f qcow2 -o cluster_size=4k b 64M; qemu-io -c 'write -P 8 0 3M' b > /dev/null
      qemu-img create -q -f qcow2 -o cluster_size=4k -b $PWD/b -F qcow2 a0 64M
      qemu-io -c 'write -P 1 1M 6M' -c 'write -P 2 20M 4M' -c 'discard 2M 2M' a0 > /dev/null
      qemu-img snapshot -c s a0; qemu-io -c 'write -P 3 5M 2M' a0 > /dev/null
      qemu-img bitmap --add a0 c; qemu-img convert -O raw a0 raw
      failures=0
      for room in 0 3 40; do
        while read -r words; do
          cp --sparse=always a0 m/a
          dd if=/dev/zero of=m/filler bs=4k 2> /dev/null; truncate -s -$((room * 4096)) m/filler
          $qublk $words > out 2>&1; status=$?; rm m/filler
          [ $status -le 1 ] || fail "$words: $status $(cat out)"
          if [ $status = 1 ]; then
            failures=$((failures + 1)); grep -q 'No space left' out || fail "$words: $(cat out)"
          fi
          qemu-img check m/a > check.out 2>&1; found=$?
          [ $found = 0 ] || [ $status$found = 13 ] || fail "$words: $status $(cat out check.out)"
          qemu-img compare -q m/a raw || fail "$words: contents"
        done <<< "compact m/a
      snapshot -c new m/a
      resize m/a +2G
      resize --preallocation=full m/a +8M
      amend -o refcount_bits=64 m/a
      bitmap --add -g 512 m/a d
      rebase -b $PWD/b -B qcow2 m/a
      vmstate m/a import s raw"
      done
      [ $failures -ge 10 ] || fail "only $failures of 24 had no room"
      """)
  }

  @Test("A clean close cuts off what was reserved and not used")
  func cutAtClose() throws {
    try mustSh(
      """
      for tool in "$qublk" qemu; do
        rm -f a; qemu-img create -q -f qcow2 a 503k
        case $tool in
          qemu) qemu-io -c 'write 0 503k' a > out ;;
          *) $qublk io -t none -c 'write 0 503k' a > out ;;
        esac || fail "$(cat out)"
        sound a
        stat -c %s a
      done > sizes
      [ "$(sort -u sizes | wc -l)" = 1 ] || fail "$(cat sizes)"
      rm a; $qublk create -q -f qcow2 a 503k; $qublk io -c 'write 0 503k' a > out || fail "$(cat out)"
      qemu-img resize --preallocation=falloc a 700M || fail 'resize'
      sound a
      """)
  }

  @Test("Kills leave few leaks, and the file does not grow from one to the next")
  func kills() throws {
    try mustSh(
      """
      qemu-img create -q -f qcow2 a 4G
      before=0
      for round in 1 2 3 4 5; do
        # A file for each round: the process opens it late, and an old one would say "read" before.
        out=out.$round; : > $out
        mkfifo -m 600 p; $qublk io -t none a < p > $out 2>&1 & process=$!
        exec 3> p
        for ((i = 0; i < 30; i++)); do echo "write -P 7 $(((round * 30 + i) * 64))k 64k" >&3; done
        echo flush >&3; echo "read -P 7 $((round * 30 * 64))k 64k" >&3
        until grep -q ^read $out; do kill -0 $process || fail "$(cat $out)"; sleep 0.05; done
        kill -9 $process; wait $process 2>/dev/null; exec 3>&-; rm p
        qemu-img check a > check.out 2>&1; rc=$?; [ $rc = 0 ] || [ $rc = 3 ] || fail "$(cat check.out)"
        now=$(leaks a)
        [ $((now - before)) -le 20 ] || fail "round $round: $before leaks, then $now"
        before=$now
        size=$(stat -c %s a); [ $round = 1 ] && first=$size
        [ "$size" -le $((first + round * 4 * 1048576)) ] || fail "round $round: $first grew to $size"
      done
      for ((i = 30; i < 180; i++)); do echo "read -P 7 $((i * 64))k 64k"; done | qemu-io a > out
      grep -c 'read 65536/65536' out | grep -qx 150 || fail "$(cat out)"
      ! grep 'verification failed' out || fail contents
      """)
  }
}

/// Whether a file system can be mounted here.
private let mayMount: Bool =
  geteuid() == 0
  && (try? run(
    "bash", "-c",
    "d=$(mktemp -d) && mount -t tmpfs tmpfs $d && umount $d && rmdir $d && losetup -f"
  ).status) == 0
