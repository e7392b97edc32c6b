/// A command as it is given a malformed image, which is the file "bad".
struct ImageCommand: Sendable {
  /// What the command may do to the image.
  enum Access: Sendable {
    /// Nothing.
    case reads
    /// Change it where the command succeeds. Where it fails, what the disk and the snapshots hold stays, as
    /// far as it can be read.
    case changes
    /// Write its disk, or repair it: what was written before damage was met stays.
    case writes
  }

  let words: [String]
  let access: Access

  init(_ access: Access, _ line: String) {
    self.access = access
    // "_" stands for a space in a word, "''" for an empty word.
    words = line.split(separator: " ").map { word in
      word == "''" ? "" : String(word.map { $0 == "_" ? " " : $0 })
    }
  }

  /// Every image command, with the options that lead to different code.
  static let all: [ImageCommand] = reading + changing + writing

  private static let reading = [
    "info bad", "info -f qcow2 --backing-chain bad", "info --output=json --limits bad",
    "check bad", "check --output=json -f qcow2 bad",
    "map bad", "map --output=json bad", "measure -O qcow2 bad", "measure -O raw -l one bad",
    "convert -O raw bad target", "convert -f qcow2 -O qcow2 bad target",
    "convert -c -O qcow2 -m 16 -W bad target", "convert -l one -O raw bad target",
    "convert --bitmaps -O qcow2 bad target", "convert --salvage -O raw bad target",
    "dd if=bad of=target bs=64k count=20", "compare bad good", "compare -s good bad",
    "snapshot -l bad", "rebase -b good -B qcow2 over", "rebase -b '' over",
    "commit -b bad -r 0 none",
    "bitmap --add -b bad -F qcow2 good x", "backup --full --since a bad target",
    "backup --since a bad target", "restore bad good", "bench -c 20 -S 256k bad",
    "io -r -c read_0_8M -c alloc_0_8M -c map bad", "create -f qcow2 -b bad -B qcow2 target",
    "vmstate bad list", "vmstate bad export one target",
  ].map { ImageCommand(.reads, $0) }

  private static let changing = [
    "snapshot -c new bad", "snapshot -d one bad",
    "snapshot -a one bad", "snapshot -a two bad", "resize bad +1M",
    "resize --preallocation=metadata bad +1M", "resize --shrink bad 1M",
    "amend -o compat=0.10 bad", "amend -o compat=1.1 bad", "amend -o lazy_refcounts=on bad",
    "amend -o refcount_bits=64 bad", "amend -o backing_file=good,backing_fmt=qcow2 bad",
    "rebase -u -b good -B qcow2 bad", "rebase -b good -B qcow2 bad", "rebase -b '' bad",
    "bitmap --add bad new", "bitmap --remove bad a", "bitmap --clear bad a",
    "bitmap --disable bad a", "bitmap --merge b bad a", "bitmap --remove-all bad",
    "commit -d bad", "commit bad", "vmstate bad import one small",
  ].map { ImageCommand(.changes, $0) }

  private static let writing = [
    "check -r leaks bad", "check -r all bad", "convert -n -O qcow2 good bad",
    "convert -n --target-is-zero -O qcow2 good bad",
    "convert -n -f raw good.raw -O qcow2 bad", "commit over", "restore delta bad",
    "bench -w -c 20 -S 256k bad",
    "io -c write_0_100k -c discard_1M_64k -c write_-z_2M_64k -c flush -c truncate_9M bad",
  ].map { ImageCommand(.writes, $0) }
}
