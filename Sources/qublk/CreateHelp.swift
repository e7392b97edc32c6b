/// The list of options that `create -o help` prints, in qemu-img's form.
enum CreateHelp {
  /// Whether a list of `-o` asks for it.
  static func isWanted(_ lists: [String]) -> Bool {
    lists.contains { list in list.split(separator: ",").contains { $0 == "help" || $0 == "?" } }
  }

  /// The text for a format, with line breaks; nil for a format that cannot be made.
  static func text(_ format: String) -> String? {
    let options: [(name: String, type: String, meaning: String)]
    switch format {
    case "qcow2": options = qcow2 + common
    case "raw": options = raw + common
    default: return nil
    }
    let lines = options.sorted { $0.name < $1.name }.map { option in
      let name = "  \(option.name)=<\(option.type)>"
      let gap = String(repeating: " ", count: max(1, 25 - name.utf8.count))
      return "\(name)\(gap)- \(option.meaning)\n"
    }
    return "Supported \(format) options:\n" + lines.joined()
  }

  private static let switchType = "bool (on/off)"

  private static let common = [
    ("size", "size", "the size of the disk"),
    ("nocow", switchType, "no copy-on-write of the file's data, on btrfs"),
    ("extent_size_hint", "size", "how much XFS is to allocate at once"),
  ]

  private static let raw = [
    ("preallocation", "str", "storage that the file gets at once: off, falloc, full")
  ]

  private static let qcow2 = [
    ("backing_file", "str", "the backing file, as the image is to name it"),
    ("backing_fmt", "str", "the format of the backing file: raw or qcow2"),
    ("cluster_size", "size", "the unit of allocation: 512 to 2M"),
    ("compat", "str", "the version of the format: v2 (0.10) or v3 (1.1)"),
    ("compression_type", "str", "how compressed clusters are compressed: zlib or zstd"),
    ("data_file", "str", "the file that the guest's data goes to"),
    ("data_file_raw", switchType, "the data file is a raw image at all times"),
    ("encrypt.cipher-alg", "str", "the cipher of LUKS"),
    ("encrypt.cipher-mode", "str", "the mode of the cipher"),
    ("encrypt.format", "str", "how the data is encrypted: luks or aes"),
    ("encrypt.hash-alg", "str", "the hash that keys are derived with"),
    ("encrypt.iter-time", "num", "milliseconds that an attempt to unlock shall take"),
    ("encrypt.ivgen-alg", "str", "where initialisation vectors come from"),
    ("encrypt.ivgen-hash-alg", "str", "the hash of that"),
    ("encrypt.key-secret", "str", "the id of the --object with the passphrase"),
    ("encryption", switchType, "the old name of encrypt.format=aes"),
    ("extended_l2", switchType, "32 subclusters in each cluster"),
    ("lazy_refcounts", switchType, "refcounts are written late, and counted anew after a crash"),
    ("preallocation", "str", "what is mapped and stored at once: off, metadata, falloc, full"),
    ("refcount_bits", "num", "the width of a refcount: 1 to 64"),
  ]
}
