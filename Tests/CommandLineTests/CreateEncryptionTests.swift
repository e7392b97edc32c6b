import TestTools
import Testing

/// `qublk create` with encryption, judged by QEMU's tools and by our own commands.
@Suite(.enabled(if: hasQEMU, "needs qemu-img and qemu-io")) struct CreateEncryptionTests {
  let directory: TemporaryDirectory
  private static let quick = "encrypt.format=luks,encrypt.iter-time=10"

  init() throws {
    directory = try TemporaryDirectory()
    try mustSh("printf geheim >pass; printf falsch >wrong; qemu-img create -q -f raw base 3M")
  }

  /// Runs a line of bash in the directory.
  @discardableResult
  private func sh(_ line: String) throws -> Outcome {
    let functions = """
      secret() { echo "--object secret,id=k,file=$1"; }
      opts() { echo "--image-opts driver=qcow2,file.filename=$1,encrypt.key-secret=k"; }
      """
    return try run(
      "bash", "-c", "cd \(directory.path); qublk=\(try qublkPath())\n\(functions)\n\(line)")
  }

  private func mustSh(_ line: String) throws {
    let outcome = try sh(line)
    try #require(outcome.status == 0, "\(line): \(outcome.output) \(outcome.errors)")
  }

  static let forms = [
    "encrypt.format=aes", "encrypt.format=aes,compat=0.10,cluster_size=512", "encryption=on",
    "encrypt.format=aes,preallocation=metadata", "encrypt.format=aes,data_file=%.data",
    quick, "\(quick),compat=0.10", "\(quick),cluster_size=512", "\(quick),cluster_size=2M",
    "\(quick),cluster_size=4k,refcount_bits=1", "\(quick),extended_l2=on,cluster_size=16k",
    "\(quick),extended_l2=on,preallocation=full", "\(quick),preallocation=metadata",
    "\(quick),preallocation=falloc", "\(quick),preallocation=full",
    "\(quick),data_file=%.data,preallocation=metadata", "\(quick),compression_type=zstd",
    "\(quick),backing_file=base,backing_fmt=raw", "\(quick),lazy_refcounts=on",
    "\(quick),encrypt.cipher-alg=aes-128,encrypt.hash-alg=sha1",
    "\(quick),encrypt.cipher-alg=aes-192,encrypt.hash-alg=sha512",
    "\(quick),encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.hash-alg=ripemd160",
    "\(quick),encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256",
    "\(quick),encrypt.cipher-mode=ctr,encrypt.ivgen-alg=plain,encrypt.hash-alg=sha224",
    "\(quick),encrypt.cipher-mode=ecb,encrypt.ivgen-alg=plain64,encrypt.hash-alg=sha384",
  ]

  @Test(arguments: share(of: forms))
  func whatIsMadeIsReadAndWrittenByBoth(form: String) throws {
    let list = form.replacing("%", with: "y") + ",encrypt.key-secret=k"
    let key = form == "encryption=on" ? "" : ",encrypt.key-secret=k"
    let made = try sh(
      "$qublk create $(secret pass) -o \(form.replacing("%", with: "x"))\(key) x 3M"
        + (key.isEmpty ? " --secret-file pass" : ""))
    try #require(made.status == 0, "\(made.errors)")
    if !key.isEmpty {
      // It says so even where it then finds its clock too coarse.
      let theirs = try sh("qemu-img create -f qcow2 $(secret pass) -o \(list) y 3M")
      let ours = made.output.replacing("'x'", with: "'y'").replacing("=x.data", with: "=y.data")
      #expect(ours == theirs.output)
    }
    try mustSh(
      """
      set -e
      qemu-img check $(secret pass) $(opts x) | grep -q 'No errors were found'
      qemu-img info $(secret pass) $(opts x) | grep -q 'encrypted: yes'
      $qublk info x | grep -q 'encrypted: yes'
      $qublk check x
      # A new image reads as zeros, for both.
      qemu-io $(secret pass) -c 'read -P 0 0 3M' $(opts x)
      $qublk io --secret-file pass -c 'read -P 0 0 3M' x
      qemu-io $(secret pass) -c 'write -P 7 1536 130k' -c 'write -P 8 2M 512' $(opts x)
      $qublk io --secret-file pass -c 'read -P 0 0 1536' -c 'read -P 7 1536 130k' \
        -c 'read -P 8 2M 512' -c 'read -P 0 2097664 1k' -c 'write -P 9 100k 40k' \
        -c 'write -P 10 2097664 1k' -c 'write -P 11 2621952 1k' -c 'write -z 64k 3k' x
      qemu-io $(secret pass) -c 'read -P 0 0 1536' -c 'read -P 7 1536 64000' -c 'read -P 0 64k 3k' \
        -c 'read -P 7 67k 33k' -c 'read -P 9 100k 40k' -c 'read -P 0 140k 3k' \
        -c 'read -P 8 2M 512' -c 'read -P 10 2097664 1k' -c 'read -P 0 2620928 1k' \
        -c 'read -P 11 2621952 1k' -c 'read -P 0 2622976 1k' $(opts x)
      qemu-img check $(secret pass) $(opts x)
      $qublk check x
      # Not as plain text.
      ! grep -q "$(printf '\\t%.0s' {1..64})" x
      """)
    guard form.contains("luks") else { return }
    let before = try sh("sha256sum x").output
    for wrong in [
      "$qublk io --secret-file wrong -c 'write 0 1k' x", "$qublk io -c 'write 0 1k' x",
      "qemu-io $(secret wrong) -c 'write 0 1k' $(opts x)",
    ] { #expect(try sh(wrong).status != 0, "\(wrong)") }
    #expect(try sh("sha256sum x").output == before)
  }

  /// The message after the file's name, with exit status 1 and no file made.
  private func failure(_ words: String) throws -> String {
    let outcome = try sh("$qublk create -q \(words)")
    #expect(outcome.status == 1 && outcome.output == "", "\(words)")
    #expect(try sh("ls").output == "base\npass\nwrong\n", "\(words)")
    return outcome.errors
  }

  @Test func whatFailsLeavesNothing() throws {
    let luks = "-o encrypt.format=luks,encrypt.iter-time=10"
    let missing =
      "qublk: x: encryption needs a passphrase: give it with encrypt.key-secret and "
      + "--object secret, or with --secret-file, --secret-fd or --secret-keyring\n"
    #expect(try failure("\(luks) x 1M") == missing)
    #expect(try failure("-o encryption=on x 1M") == missing)
    #expect(
      try failure("\(luks),encrypt.key-secret=no $(secret pass) x 1M")
        == "qublk: -o: no --object secret has the id \"no\"\n")
    #expect(
      try failure("$(secret pass) $(secret pass) \(luks),encrypt.key-secret=k x 1M")
        == "qublk: --object: two secrets have the id \"k\"\n")
    #expect(
      try failure("\(luks) --secret-file none x 1M")
        == "qublk: none: cannot open the secret: No such file or directory (ENOENT)\n")
    #expect(
      try failure("\(luks),encrypt.key-secret=k $(secret pass) --secret-file pass x 1M")
        == "qublk: x: encrypt.key-secret and an option for the passphrase exclude each other\n")
    #expect(
      try failure("--secret-file pass x 1M").hasPrefix("qublk: x: a passphrase was given"))
    #expect(
      try failure("\(luks) --secret-file pass --secret-file pass x 1M")
        .hasPrefix("qublk: x: a passphrase was given"))
    #expect(
      try failure(
        "\(luks),encrypt.cipher-alg=aes-192,encrypt.cipher-mode=cbc --secret-file pass x 1M")
        == "qublk: x: LUKS header: cipher is aes-192 in cbc mode, expected aes-128, aes-256, or "
        + "aes-192 in xts mode\n")
    #expect(
      try failure(
        "\(luks),encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha512 --secret-file pass x 1M")
        == "qublk: x: libcrypto does not have AES with a key of 64 bytes, for essiv:sha512\n")
  }

  @Test func secretsComeEveryWay() throws {
    try mustSh(
      """
      set -e; base64 <pass >coded
      $qublk create -q -o \(Self.quick),encrypt.key-secret=k \
        --object secret,id=k,file=coded,format=base64 a 1M
      $qublk create -q -o \(Self.quick),encrypt.key-secret=k --object secret,id=k,data=geheim b 1M
      $qublk create -q -o \(Self.quick) --secret-fd 3 c 1M 3<pass
      for image in a b c; do
        qemu-io $(secret pass) -c 'write -P 3 0 1M' $(opts $image)
        $qublk io --secret-file pass -c 'read -P 3 0 1M' $image
      done
      """)
  }

  /// The clusters of a LUKS header are in use, and stay so [ENC-6].
  @Test func repairKeepsTheLUKSHeader() throws {
    try mustSh(
      """
      set -e
      $qublk create -q -o \(Self.quick),cluster_size=4k --secret-file pass x 2M
      $qublk io --secret-file pass -c 'write -P 5 0 1M' x
      table=$(od -A n -t u8 --endian=big -j 48 -N 8 x | tr -d ' ')
      block=$(od -A n -t u8 --endian=big -j $table -N 8 x | tr -d ' ')
      dd if=/dev/zero of=x bs=1 seek=$block count=1024 conv=notrunc status=none
      ! $qublk check x >/dev/null
      $qublk check -r all x
      $qublk check x
      qemu-img check $(secret pass) $(opts x)
      $qublk io --secret-file pass -c 'write -P 6 1M 1M' -c 'read -P 5 0 1M' x
      qemu-io $(secret pass) -c 'read -P 5 0 1M' -c 'read -P 6 1M 1M' $(opts x)
      """)
  }

  /// Every layer has the encryption that it has, whatever the others have [ENC-7].
  @Test(arguments: ["plain", "aes", "luks"], ["plain", "aes", "luks"])
  func layersOfEveryKind(top: String, base: String) throws {
    func create(_ kind: String, _ rest: String) -> String {
      let options = ["plain": "", "aes": "-o encrypt.format=aes", "luks": "-o \(Self.quick)"]
      let secret =
        kind == "plain" ? "" : "--secret-file \(rest.hasPrefix("lower") ? "wrong" : "pass")"
      return "$qublk create -q \(options[kind] ?? "") \(secret) \(rest)"
    }
    let secrets =
      (top == "plain" ? "" : "--secret-file pass ") + (base == "plain" ? "" : "--secret-file wrong")
    var opts = "driver=qcow2,file.filename=upper,backing.driver=qcow2,backing.file.filename=lower"
    if top != "plain" { opts += ",encrypt.key-secret=k" }
    if base != "plain" { opts += ",backing.encrypt.key-secret=l" }
    try mustSh(
      """
      set -e; theirs() { qemu-io $(secret pass) --object secret,id=l,file=wrong "$@" --image-opts \(opts); }
      \(create(base, "lower 1M"))
      $qublk io \(base == "plain" ? "" : "--secret-file wrong") -c 'write -P 1 0 700k' lower
      sum=$(sha256sum lower)
      \(create(top, "-b lower -F qcow2 upper"))
      # Across two unallocated clusters, zeros, a discard, and past what the lower image has.
      $qublk io \(secrets) -c 'write -P 2 65024 1k' -c 'write -z 200k 70k' -c 'discard 320k 64k' \
        -c 'write -P 3 448512 512' -c 'write -P 4 716288 1k' upper
      theirs -c 'read -P 1 0 65024' -c 'read -P 2 65024 1k' -c 'read -P 1 66048 138752' \
        -c 'read -P 0 200k 70k' -c 'read -P 1 270k 50k' -c 'read -P 0 320k 64k' \
        -c 'read -P 1 384k 55296' -c 'read -P 3 448512 512' -c 'read -P 1 449024 512' \
        -c 'read -P 4 716288 1k' -c 'read -P 0 717312 1k' -c 'read -P 1 699k 512' \
        -c 'write -P 5 130560 1k' -c 'write -P 6 1047552 1k'
      $qublk io \(secrets) -c 'read -P 2 65024 1k' -c 'read -P 1 66048 64512' -c 'read -P 5 130560 1k' \
        -c 'read -P 1 131584 73216' -c 'read -P 6 1047552 1k' upper
      $qublk check upper
      [ "$sum" = "$(sha256sum lower)" ]
      """)
  }
}
