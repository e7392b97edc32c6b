import QCOW2Tools
import TestTools
import Testing

/// Images that QEMU made, with every feature that it has.
enum Corpus {
  /// Makes the images in the current folder.
  static let script = #"""
    shopt -s expand_aliases
    create() { qemu-img create -q -f qcow2 "$@"; }
    io() { qemu-io "$@" >/dev/null 2>&1; }
    create base.qcow2 10M
    create -b base.qcow2 -F qcow2 overlay.qcow2
    io -c 'write 0 1M' overlay.qcow2
    qemu-img snapshot -c s1 overlay.qcow2
    io -c 'write -P 3 64k 512k' overlay.qcow2
    qemu-img snapshot -c 'snap two with a long name' overlay.qcow2
    qemu-img bitmap --add overlay.qcow2 bm0
    qemu-img bitmap --add --disable -g 4k overlay.qcow2 bm1
    io -c 'write 5M 1M' -c 'write -z 7M 1M' -c 'discard 64k 128k' overlay.qcow2
    for size in 512 4k 64k 2M; do
      create -o cluster_size=$size cluster$size.qcow2 64M
      io -c 'write -P 5 0 3M' -c 'write -P 4 40M 1M' -c 'write -z 50M 1M' \
        -c 'write -z -u 51M 1M' cluster$size.qcow2
      qemu-img snapshot -c a cluster$size.qcow2
      io -c 'write -P 5 1M 100k' cluster$size.qcow2
      qemu-img snapshot -c b cluster$size.qcow2
      qemu-img convert -c -O qcow2 -o cluster_size=$size cluster$size.qcow2 compressed$size.qcow2
      io -c 'write 100k 100k' compressed$size.qcow2
    done
    for bits in 1 2 4 8 32 64; do
      create -o refcount_bits=$bits,cluster_size=1k refcount$bits.qcow2 8M
      io -c 'write -P 5 0 3M' refcount$bits.qcow2
      [ $bits != 1 ] && qemu-img snapshot -c a refcount$bits.qcow2
      io -c 'write -P 5 1M 100k' refcount$bits.qcow2
    done
    create -o compat=0.10 v2.qcow2 64M
    io -c 'write 0 1M' v2.qcow2; qemu-img snapshot -c x v2.qcow2; io -c 'write 0 100k' v2.qcow2
    create -o extended_l2=on,cluster_size=128k extended.qcow2 64M
    io -c 'write 4k 8k' -c 'write -z 200k 20k' -c 'write 1M 1M' -c 'discard 1024k 4k' \
      extended.qcow2
    qemu-img snapshot -c x extended.qcow2; io -c 'write 0 100k' extended.qcow2
    qemu-img convert -c -O qcow2 -o compression_type=zstd,extended_l2=on extended.qcow2 zstd.qcow2
    create -o data_file=d.raw,data_file_raw=on raw.qcow2 10M
    create -o data_file=d2.raw data.qcow2 10M; io -c 'write 4k 800k' data.qcow2
    key="--object secret,id=s,data=abc -o encrypt.key-secret=s"
    for try in $(seq 40); do
      create $key -o encrypt.format=luks,encrypt.iter-time=10 luks.qcow2 10M 2>/dev/null && break
    done
    essiv=encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256
    for try in $(seq 40); do
      create $key -o encrypt.format=luks,encrypt.iter-time=10,$essiv \
        -o encrypt.cipher-alg=aes-128,encrypt.hash-alg=sha1 essiv.qcow2 10M 2>/dev/null && break
    done
    create $key -o encryption=on aes.qcow2 10M 2>/dev/null
    create -o lazy_refcounts=on lazy.qcow2 100M; io -c 'write 0 1M' -c abort lazy.qcow2
    create -o preallocation=metadata preallocated.qcow2 100M
    create empty.qcow2 0; create odd.qcow2 1000
    create -u -b /dev/zero -F raw absolute.qcow2 1M
    mkdir sub
    create -b ../base.qcow2 -F qcow2 sub/relative.qcow2
    create -u -b nbd://foo/bar -F raw protocol.qcow2 1M
    create -u -b a/b:c -F raw colon.qcow2 1M
    create -u -b ./unknown noformat.qcow2 1M 2>/dev/null
    cp base.qcow2 names.qcow2
    qemu-img snapshot -c $'quote"back\\slash\ttab\u00fc\U1f600' names.qcow2
    """#

  /// Where QEMU opens no backing file for the check because there is none.
  static let withoutBacking: Set<String> = [
    "protocol.qcow2", "colon.qcow2", "noformat.qcow2", "absolute.qcow2",
  ]
  /// Where QEMU wants the passphrase.
  static let encrypted: Set<String> = ["luks.qcow2", "essiv.qcow2", "aes.qcow2"]
}

@Suite(.enabled(if: hasQEMU, "needs qemu-img and qemu-io")) struct CorpusTests {
  @Test func infoAndCheckSayWhatQEMUSays() throws {
    let folder = try Folder()
    folder.run(Corpus.script)
    let names = folder.run("ls *.qcow2 sub/*.qcow2").out.split(separator: "\n").map(String.init)
    #expect(names.count >= 31, "only the encrypted ones may be missing")
    for name in names {
      try compareInfo(name, folder)
      try compareCheck(name, folder)
    }
  }

  private func compareInfo(_ name: String, _ folder: Folder) throws {
    let file = try FileBytes(path: "\(folder.path)/\(name)", access: .readOnly)
    let info = try ImageInfo(
      reading: file, path: name, allocatedBytes: file.allocatedBytes)
    // In the words of the newest QEMU: scripts/qemu-newest.
    let newest = "${QUBLK_QEMU_DIR:-/var/cache/qublk-vm/qemu/bin}/qemu-img"
    #expect(info.report.jsonText == folder.run("\(newest) info --output=json \(name)").out)
    #expect(info.report.humanText == folder.run("\(newest) info \(name)").out)
  }

  private func compareCheck(_ name: String, _ folder: Folder) throws {
    guard !Corpus.withoutBacking.contains(name) else { return }
    var image = name
    if Corpus.encrypted.contains(name) {
      image =
        "--object secret,id=s,data=abc --image-opts"
        + " driver=qcow2,file.filename=\(name),encrypt.key-secret=s"
    }
    let json = folder.run("qemu-img check --output=json \(image)")
    let text = folder.run("qemu-img check \(image)")
    var findings: [String] = []
    let file = try FileBytes(path: "\(folder.path)/\(name)", access: .readOnly)
    let result = try ImageCheck.run(file) { findings.append($0.message) }
    #expect(result.exitCode == json.status, "\(name): \(findings)")
    #expect(result.humanText == text.out, "\(name)")
    let spelled = image.contains("driver=") ? image.split(separator: " ").last ?? "" : ""
    let expected = spelled.isEmpty ? json.out : json.out.replacing(spelled, with: name)
    #expect(result.jsonText(path: name) == expected, "\(name)")
  }
}
