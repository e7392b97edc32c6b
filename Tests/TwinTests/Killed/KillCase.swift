/// A command that changes an image, and what the image may be when the command was killed.
struct KillCase: Sendable, CustomStringConvertible {
  /// What the killed command may leave.
  enum Leaves: Sendable {
    /// What `probe` said before, or what it says after the whole command.
    case oldOrNew
    /// Something in between, of which `steady` says what it said before, until the command is given again.
    case resumable
  }

  let description: String
  /// A bash script that makes "image", and what else the command needs, in the current directory.
  let make: String
  /// The command; "image" is the last file that it changes.
  let words: [String]
  /// A bash script that prints what matters of the image.
  var probe = KillCase.everything
  /// The same of what must stay at every moment.
  var steady = KillCase.disk
  var leaves = Leaves.oldOrNew
  /// How qemu-img is told of the image, where its name is not enough.
  var named = "image"

  init(
    _ description: String, _ make: String, _ line: String,
    _ change: (inout KillCase) -> Void = { _ in }
  ) {
    self.description = description
    self.make = make
    words = line.split(separator: " ").map { $0 == "''" ? "" : String($0) }
    change(&self)
  }

  /// What the disk reads as.
  static let disk = """
    qemu-img convert -O raw image out.raw; cksum < out.raw; rm out.raw
    """
  /// The disk, each snapshot, version, sizes, bitmaps.
  static let everything =
    disk + """

      qemu-img snapshot -l image | awk 'NR > 2 { print $1, $2, $3 }'
      for id in $(qemu-img snapshot -l image | awk 'NR > 2 { print $1 }'); do
        qemu-img convert -l snapshot.id=$id -O raw image out.raw; cksum < out.raw; rm out.raw
      done
      qemu-img info image | grep -E 'virtual size|compat|refcount bits|backing file:|lazy'
      qemu-img info image | sed -n '/bitmaps/,/refcount/p' | grep -vE 'in-use' || true
      """

  /// A version 3 image of 24 MiB, some of it compressed, with two snapshots.
  private static func image(_ options: String = "cluster_size=4k") -> String {
    """
    qemu-img create -q -f raw source 24M
    for n in 1 2 3 4 5 6; do qemu-io -f raw -c "write -P $n $((n * 3))M 1M" source; done
    qemu-img convert -c -f raw -O qcow2 -o \(options) source image
    qemu-io -c 'write -P 7 1M 3M' -c 'write -P 8 20M 100k' image
    qemu-img snapshot -c one image; qemu-io -c 'write -P 9 2M 3M' -c 'discard 9M 500k' image
    qemu-img snapshot -c two image; qemu-io -c 'write -P 10 3M 300k' image; rm source
    """
  }

  private static let bitmaps = """
    qemu-img create -q -f qcow2 -o cluster_size=4k image 24M; qemu-io -c 'write -P 1 0 3M' image
    qemu-img bitmap --add -g 4k image a; qemu-io -c 'write -P 2 1M 4M' image
    qemu-img bitmap --add -g 4k image b; qemu-io -c 'write -P 3 9M 4M' image
    """

  private static let luks = """
    for try in $(seq 40); do
      qemu-img create -q --object secret,id=s,data=one -f qcow2 -o \
    encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,cluster_size=4k image 4M && break
    done
    """
  /// How many key slots are in use, whether the first key opens the image, and what it reads as.
  private static let slots = """
    qemu-img info image | grep -c 'active: true'
    qemu-img convert --object secret,id=s,data=one --image-opts \
    driver=qcow2,file.filename=image,encrypt.key-secret=s -O raw out.raw; cksum < out.raw; rm out.raw
    """
  private static let key = "--object secret,id=s,data=one --object secret,id=n,data=two"
  private static let keyed = "driver=qcow2,file.filename=image,encrypt.key-secret=s"

  static let all: [KillCase] = snapshots + sizes + amendments + others

  private static let snapshots = [
    KillCase("snapshot -c", image(), "snapshot -c three image"),
    KillCase("snapshot -d", image(), "snapshot -d one image"),
    KillCase("snapshot -a", image(), "snapshot -a one image") { $0.steady = "" },
    KillCase(
      "snapshot -c, extended", image("cluster_size=16k,extended_l2=on"), "snapshot -c n image"),
    KillCase(
      "snapshot -d, version 2", image("cluster_size=4k,compat=0.10"), "snapshot -d one image"),
    KillCase(
      "vmstate import", image() + "\nhead -c 3000001 /dev/urandom > state",
      "vmstate image import one state"),
  ]

  private static let sizes = [
    KillCase("resize: grow", image(), "resize image 900M") { $0.steady = "" },
    KillCase("resize: shrink", image(), "resize --shrink image 7M") { $0.steady = "" },
    KillCase(
      "resize: metadata in advance", image(), "resize --preallocation=metadata image 40M"
    ) {
      $0.steady = ""
      $0.leaves = .resumable
    },
    KillCase("resize: storage in advance", image(), "resize --preallocation=full image 30M") {
      $0.steady = ""
      $0.leaves = .resumable
    },
  ]

  private static let amendments = [
    KillCase("amend: down", image(), "amend -o compat=0.10 image") { $0.leaves = .resumable },
    KillCase("amend: up", image("cluster_size=4k,compat=0.10"), "amend -o compat=1.1 image"),
    KillCase("amend: wide refcounts", image(), "amend -o refcount_bits=64 image"),
    KillCase(
      "amend: narrow refcounts", image("cluster_size=4k,refcount_bits=64"),
      "amend -o refcount_bits=16 image"),
    KillCase(
      "amend: another key", luks,
      "amend \(key) --image-opts \(keyed) -o encrypt.state=active,encrypt.new-secret=n,encrypt.iter-time=10"
    ) { $0.usesSlots() },
    KillCase(
      "amend: one key less",
      luks + """

        new=encrypt.state=active,encrypt.new-secret=n,encrypt.iter-time=10
        for try in $(seq 40); do qemu-img amend \(key) --image-opts \(keyed) -o $new && break; done
        """,
      "amend \(key) --image-opts \(keyed) -o encrypt.state=inactive,encrypt.keyslot=1"
    ) { $0.usesSlots() },
  ]

  private mutating func usesSlots() {
    probe = Self.slots
    steady = Self.slots.split(separator: "\n").dropFirst().joined(separator: "\n")
    named = "--object secret,id=s,data=one --image-opts \(Self.keyed)"
  }

  private static let others = [
    KillCase("bitmap --add", bitmaps, "bitmap --add -g 512 image c"),
    KillCase("bitmap --remove", bitmaps, "bitmap --remove image a"),
    KillCase("bitmap --merge", bitmaps, "bitmap --merge a image b"),
    KillCase("bitmap --clear", bitmaps, "bitmap --clear image a"),
    KillCase(
      "restore",
      bitmaps + "\nqemu-img create -q -f qcow2 delta 24M; qemu-io -c 'write -P 5 3M 9M' delta",
      "restore -m 2 delta image"
    ) {
      $0.steady = ""
      $0.leaves = .resumable
    },
    KillCase("backup --clear", bitmaps, "backup --since a --clear image delta") {
      $0.leaves = .resumable
    },
    KillCase(
      "check -r all",
      image() + "\nprintf '\\xff' | dd of=image bs=1 seek=8250 conv=notrunc status=none",
      "check -q -r all image"
    ) {
      $0.leaves = .resumable
      $0.probe = Self.everything + "\nqemu-img check -q image 2>&1 || echo $?"
    },
    KillCase(
      "rebase",
      image() + "\nqemu-img create -q -f qcow2 new 24M; qemu-io -c 'write -P 77 0 20M' new",
      "rebase -b new -B qcow2 image"
    ) {
      $0.leaves = .resumable
    },
  ]
}
