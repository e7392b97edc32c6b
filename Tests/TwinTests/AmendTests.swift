import TestTools
import Testing

/// `amend` of both programs: each option on images of every kind, refusals, and key slots.
@Suite(.enabled(if: Tools.hasQEMU, Tools.reason))
struct AmendTests {
  private static var sameInfo: Likeness {
    Likeness(ignoring: [
      "actual-size", "children", "allocated-clusters", "image-end-offset",
    ])
  }

  private func amend(_ sample: Sample, _ options: String...) -> [String] {
    ["amend"] + options.flatMap { ["-o", $0] } + sample.named
  }

  private func compareInfo(_ twin: Twin, _ sample: Sample) throws {
    // Of several options, QEMU has changed some when it refuses another one; qublk has changed none.
    if sample.isEncrypted || twin.ours.status != 0 { return }
    try twin.next(["info", "--output=json"] + sample.named, Self.sameInfo)
  }

  // With larger clusters, qemu-img takes a minute for other refcounts.

  /// QEMU leaves bitmaps that nobody can use then; qublk refuses.
  @Test(
    arguments: Sample.some(16, 11) {
      !$0.hasBitmaps && $0.clusterBits <= 16 && !($0.cipher != .plain && $0.backing != .none)
    })
  func theVersionGoesDownAndUp(sample: Sample) throws {
    let down = try Twin.change(amend(sample, "compat=0.10"), sample)
    try compareInfo(down, sample)
    let up = try down.next(amend(sample, "compat=v3"))
    try compareInfo(up, sample)
    let both = try up.next(amend(sample, "compat=v2", "refcount_bits=16"))
    try compareInfo(both, sample)
  }

  @Test(arguments: Sample.some(12, 12) { $0.clusterBits <= 16 })
  func refcountsGetAnotherWidth(sample: Sample) throws {
    var random = SeededGenerator(seed: sample.seed)
    var twin: Twin?
    for _ in 0..<3 {
      let words = amend(sample, "refcount_bits=\(1 << random.below(7))")
      twin = try twin?.next(words) ?? Twin.change(words, sample)
    }
    if let twin { try compareInfo(twin, sample) }
  }

  @Test(arguments: Sample.some(8, 13))
  func otherOptions(sample: Sample) throws {
    var twin = try Twin.change(amend(sample, "lazy_refcounts=on"), sample)
    try compareInfo(twin, sample)
    twin = try twin.next(amend(sample, "lazy_refcounts=off,size=\(sample.shape.size + 512)"))
    try compareInfo(twin, sample)
    twin = try twin.next(amend(sample, "data_file_raw=off"))
    twin = try twin.next(amend(sample, "data_file_raw=on"))
    twin = try twin.next(amend(sample, "data_file=./image.data"))
    try compareInfo(twin, sample)
  }

  @Test(arguments: Sample.some(1, 14) { $0.cipher == .plain && $0.snapshots == 0 })
  func wrongWordsEndAlike(sample: Sample) throws {
    for options in [
      "compat=0.9", "nosuch=1", "cluster_size=4k", "preallocation=full", "refcount_bits=7",
      "refcount_bits=128", "encryption=on", "encrypt.state=active", "encrypt.nosuch=1",
      "backing_file=x", "backing_fmt=raw", "lazy_refcounts=maybe", "compression_type=zstd",
      "extended_l2=on", "compat", "", "size=x", "encrypt.format=luks", "data_file_raw=on",
    ] {
      try Twin.read(amend(sample, options), sample)
    }
    try Twin.read(["amend"], sample)
    try Twin.read(["amend", "-o", "compat=v3"], sample)
    try Twin.read(["amend", Sample.name], sample)
    try Twin.read(["amend", "-o", "compat=v3", "nosuch"], sample)
    try Twin.read(["amend", "-o", "compat=v3", Sample.name, "more"], sample)
    try Twin.read(["amend", "-t", "nosuch", "-o", "compat=v3", Sample.name], sample)
    try Twin.read(["amend", "-f", "raw", "-o", "size=1M", Sample.name], sample)
    try Twin.read(["amend", "-f", "raw", "-o", "help"], sample)
    try Twin.read(["amend", "-f", "qcow2", "-o", "help"], sample)
    try Twin.read(["amend", "-f", "nosuch", "-o", "help"], sample)
    try Twin.read(["amend", "-o", "help"], sample)
    try Twin.read(["amend", "-o", "help", Sample.name], sample)
  }

  @Test func keySlots() throws {
    let sample = try Sample.make(.with { $0.cipher = .luks }, seed: 7)
    let secrets = ["--object", "secret,id=new,data=another", "--object", "secret,id=bad,data=bad"]
    func words(_ options: String, force: Bool = false) -> [String] {
      ["amend", "-o", options] + secrets + (force ? ["--force"] : []) + sample.named
    }
    let active = "encrypt.state=active,encrypt.iter-time=10,encrypt.new-secret="
    let inactive = "encrypt.state=inactive,encrypt."
    var twin = try Twin.change(words(active + "new"), sample)
    for options in [
      "encrypt.state=active", "encrypt.state=inactive", "encrypt.new-secret=new",
      active + "new,encrypt.keyslot=1", active + "new,encrypt.keyslot=8",
      active + "new,encrypt.old-secret=sec0", active + "nosuch", inactive + "old-secret=bad",
      inactive + "keyslot=5", inactive + "keyslot=9",
      inactive + "keyslot=1,encrypt.old-secret=sec0",
      inactive + "keyslot=1,encrypt.iter-time=4", inactive + "keyslot=1,encrypt.new-secret=new",
      inactive + "old-secret=new", inactive + "old-secret=sec0", inactive + "keyslot=0",
      active + "new,encrypt.keyslot=7", inactive + "keyslot=7", active + "new", active + "new",
    ] {
      twin = try twin.next(words(options))
    }
    // What one program has written opens for the other with each passphrase.
    for (sample, secret) in [(twin.ourSample, "new"), (twin.theirSample, "new")] {
      let options = "driver=qcow2,file.filename=\(Sample.name),encrypt.key-secret=\(secret)"
      let read = ["-c", "read 0 1M"] + secrets + ["--image-opts", options]
      try Tools.mustQEMU("qemu-io", read, in: sample.path)
      #expect(try Tools.qublk(["io"] + read, in: sample.path).succeeded)
    }
    twin = try twin.next(words(inactive + "old-secret=new"))
    twin = try twin.next(
      words(active + "new,encrypt.keyslot=0", force: true), Likeness(checksImages: false))
    for sample in [twin.ourSample, twin.theirSample] {
      let options = "driver=qcow2,file.filename=\(Sample.name),encrypt.key-secret=new"
      let read = ["-c", "read 0 1M"] + secrets + ["--image-opts", options]
      try Tools.mustQEMU("qemu-io", read, in: sample.path)
    }
  }
}
