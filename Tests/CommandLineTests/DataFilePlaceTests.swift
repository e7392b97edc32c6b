import TestTools
import Testing

/// Where a data file is that an image names by a relative path: in the current directory, as QEMU
/// has it, wherever the image is.
@Suite(.enabled(if: hasQEMU, "needs qemu-img and qemu-io")) struct DataFilePlaceTests {
  private let directory: TemporaryDirectory

  init() throws {
    directory = try TemporaryDirectory()
    try mustSh("mkdir sub")
  }

  private func sh(_ line: String) throws -> Outcome {
    try run("bash", "-c", "cd \(directory.path); qublk=\(try qublkPath())\n\(line)")
  }

  private func mustSh(_ line: String) throws {
    let outcome = try sh(line)
    try #require(outcome.status == 0, "\(line): \(outcome.output) \(outcome.errors)")
  }

  private static let makers = ["qemu-img create -f qcow2", "$qublk create"]

  @Test(arguments: makers, ["off", "on"])
  func bothMakeAndFindItInTheCurrentDirectory(maker: String, raw: String) throws {
    try mustSh(
      """
      set -e
      \(maker) -q -o data_file=d.raw,data_file_raw=\(raw) sub/i.qcow2 1M
      [ -f d.raw ] && [ ! -e sub/d.raw ]
      # Another file of this name beside the image is nobody's data file.
      head -c 1M /dev/zero | tr '\\0' z >sub/d.raw; sum=$(sha256sum sub/d.raw)
      qemu-io -c 'write -P 3 64k 64k' sub/i.qcow2
      $qublk io -c 'read -P 3 64k 64k' -c 'read -P 0 0 64k' -c 'write -P 4 128k 64k' sub/i.qcow2
      qemu-io -c 'read -P 0 0 64k' -c 'read -P 3 64k 64k' -c 'read -P 4 128k 64k' sub/i.qcow2
      qemu-io -f raw -c 'read -P 4 128k 64k' d.raw
      [ "$sum" = "$(sha256sum sub/d.raw)" ]
      # Under an overlay, too.
      qemu-img create -q -f qcow2 -b i.qcow2 -F qcow2 sub/o.qcow2
      qemu-io -c 'read -P 4 128k 64k' sub/o.qcow2
      $qublk io -c 'read -P 4 128k 64k' sub/o.qcow2
      """)
  }

  /// The specification has data in an external file at the guest's own offset.
  @Test(arguments: ["off", "on"])
  func dataElsewhereThanAtTheGuestsOffsetIsCorruptForBoth(raw: String) throws {
    try mustSh(
      """
      set -e
      qemu-img create -q -f qcow2 -o data_file=d.raw,data_file_raw=\(raw) x 1M
      qemu-io -c 'write -P 1 0 64k' -c 'write -P 2 64k 64k' -c 'write -P 3 128k 64k' x
      l1=$(od -A n -t u8 --endian=big -j 40 -N 8 x | tr -d ' ')
      l2=$((0x$(od -A n -t x8 --endian=big -j $l1 -N 8 x | tr -d ' ') & 0xfffffffffffe00))
      # The second and the third entry change places.
      head -c $((l2 + 16)) x | tail -c 8 >e1; head -c $((l2 + 24)) x | tail -c 8 >e2
      dd if=e2 of=x bs=8 seek=$((l2 / 8 + 1)) conv=notrunc status=none
      dd if=e1 of=x bs=8 seek=$((l2 / 8 + 2)) conv=notrunc status=none
      cp x y; cp x z
      """)
    let corrupt = "od -A n -t u8 --endian=big -j 72 -N 8"
    let theirs = try sh("qemu-io -c 'read 0 64k' -c 'read 64k 64k' x; \(corrupt) x")
    #expect(theirs.output.contains("read 65536/65536") && theirs.output.contains("read failed"))
    #expect(theirs.output.hasSuffix(" 6\n"))
    let ours = try sh("$qublk io -c 'read 0 64k' -c 'read 64k 64k' y; \(corrupt) y")
    #expect(ours.output.contains("read 65536/65536") && ours.output.contains("read failed"))
    #expect(ours.output.hasSuffix(" 6\n"), "\(ours)")
    let written = try sh("$qublk io -c 'write 64k 4k' z; \(corrupt) z; cmp x y")
    #expect(written.output.contains("write failed") && written.output.hasSuffix(" 6\n"))
    // QEMU 7.2 looks for this nowhere in its check, which calls an image clean that it cannot read.
    let checked = try sh("$qublk check z")
    #expect(checked.status == 2)
    #expect(
      checked.errors.contains("entry 1: data file offset is 0x20000, expected 0x10000"),
      "\(checked)")
  }

  @Test(arguments: makers)
  func neitherFindsItFromElsewhere(maker: String) throws {
    try mustSh("\(maker) -q -o data_file=d.raw sub/i.qcow2 1M")
    #expect(try sh("cd sub; qemu-io -c 'read 0 1k' i.qcow2").status != 0)
    let outcome = try sh("cd sub; $qublk io -c 'read 0 1k' i.qcow2")
    #expect(outcome.status == 1)
    #expect(
      outcome.errors
        == "qublk: i.qcow2: data file \"d.raw\": cannot open: No such file or directory (ENOENT): "
        + "the name counts from the current directory\n")
    try mustSh(
      "cd sub; $qublk io --image-opts -c 'read 0 1k' driver=qcow2,file.filename=i.qcow2,"
        + "data-file.filename=../d.raw")
  }
}
