import TestTools
import Testing

/// Every kind of command and of wrong use: the texts of qemu-io.
@Suite(.enabled(if: hasQEMU, "needs qemu-img and qemu-io")) struct IOTextTests {
  @Test(arguments: [
    "read 0 4k", "read 1 5", "read 0 0", "read 63M 1M", "read 1.5k 512", "read 0x200 0x200",
    "read 5. 4", "read +5 4", "read 1K 1B", "read -P 0 0 4k", "read -P0 0 4k", "read 0 512 -P 1",
    "read -P 0xab 0 4k", "read -P 010 0 1", "read -P +1 0 1", "read -qv 0 16", "read -v 0 40",
    "read -C 0 4k", "read -p 0 4k", "read -qvC 0 16", "read -P 1 -P 0 0 512",
    "read -P 0 -s 1 -l 10 0 4k", "read -P 1 -s 10 0 4k", "read -P 0 -s 4096 0 4k",
    "read -P 0 -s 5000 0 4k", "read -P 0 -l 5000 0 4k", "read -P 0 -s 100 -l 4000 0 4k",
    "read -s 1 0 4k", "read -l 1 0 4k", "read -P 0 0 65M", "r 0 4k", "read -- 0 4k",
    "read 64M 4k", "read 63M 2M", "read 9223372036854775807 1", "read 7E 1", "read 0 3G",
    "read 0 2147483137", "read 9223372036854775808 1", "read 18446744073709551616 1",
    "read 16E 4k", "read 0 8E", "read x 4", "read 0 x", "read 1kk 512", "read 0x 4",
    "read 1e3 4", "read .5k 4", "read 1.5 4", "read -- -1 4k", "read -1 4k", "read 0 -4k",
    "read 0 4k 5", "read -Z 0 4k", "read -x -y 1", "read 0 4k -P", "read -P 0 4k",
    "read -P 300 0 4k", "read -P -1 0 4k", "read -P 0x1ff 0 1", "read -P 1k 0 1",
    "read -P '' 0 1", "read -l x 0 4", "read -P 1 -l 0x 0 4", "read -b 1 512", "read -b 0 100",
    "read", "read 0", "read -x", "r",
  ])
  func reads(_ command: String) throws { try IOTwins().expectAlike([command]) }

  @Test(arguments: [
    "write 0 4k", "write 1 1", "write 3 1000", "write -q 0 4k", "write -C 0 4k",
    "write -p 0 4k", "write -f 0 4k", "write -P 0x11 64k 1", "write 0 0", "w 0 4k",
    "write -z 0 64k", "write -z 3 5", "write -zu 0 64k", "write -zn 0 64k", "write -znf 64k 64k",
    "write -zn 1k 1k", "write -c 0 64k", "write -c 64k 128k", "write -zc 0 64k",
    "write -c 1k 63k", "write -c 0 512", "write -c 0 1000", "write -c 1 512", "write 64M 1",
    "write 63M 2M", "write -z 63M 2M", "write -P 1 -z 0 64k", "write -u 0 4k", "write -n 0 4k",
    "write -bz 0 4k", "write -fc 0 64k", "write -fb 0 4k", "write -s /nonexistent 0 4k",
    "write -s /dev/null 0 4k", "write -s /tmp 0 4k", "write -P 1 -s /etc/passwd 0 4k",
    "write 0 3G", "write -z 0 2G", "write -zn 0 3G", "write -z 0 9E", "write -d 0 4k",
    "write 0 4k 4k", "write -b 1 512", "write -b 0 100", "write", "write 0", "write -s",
    "writev 0 4k", "writev 0 1k 1k 2k", "writev -q 0 4k", "writev 1 512", "writev 0 0",
    "writev -f 0 4k", "writev 64M 512", "writev 0 4k x", "writev -z 0 4k", "writev 0",
    "writev 0 3G", "writev 0 1G 1G", "readv 0 4k 4k", "readv -P 0xcd 0 4k 4k", "readv -v 0 5 6",
    "readv -P 0 0 0", "readv 64M 512", "readv 0 3G", "readv 0 1G 1G", "readv x 1", "readv 0 x",
    "discard 0 64k", "discard 1 512", "discard 0 1000", "discard -q 0 64k", "discard -C 0 64k",
    "discard 64M 64k", "discard -x 0 64k", "discard 0 1 1", "discard x 1", "discard 0 3G",
    "discard", "discard 0", "d 0 64k",
  ])
  func writes(_ command: String) throws {
    let twins = try IOTwins()
    try twins.expectAlike([command])
    try twins.expectEqualImages()
  }

  @Test(arguments: [
    "aio_read 0 4k", "aio_read -v 0 20", "aio_read -q 0 4k", "aio_read -P 1 0 4k",
    "aio_read -C 0 4k", "aio_read 64M 512", "aio_read 0 4k 4k 4k", "aio_read -i 0 4k",
    "aio_read -P x 0 4k", "aio_read -p 0 4k", "aio_read", "aio_read 0", "aio_read 0 3G",
    "aio_write 0 4k", "aio_write -q 0 4k 4k", "aio_write -f 0 4k", "aio_write 1 512",
    "aio_write 0 0", "aio_write 64M 512", "aio_write -i 0 4k", "aio_write -zi 0 64k",
    "aio_write -z 0 64k 64k", "aio_write -u 0 4k", "aio_write -u -P 1 0 4k",
    "aio_write -z 64M 4k", "aio_write -z 0 3G", "aio_write 0 3G", "aio_write -c 0 64k",
    "aio_write -n -z 0 64k", "aio_write 0 4k x", "aio_write", "aio_flush", "aio_flush 1",
  ])
  func asynchronousRequests(_ command: String) throws {
    try IOTwins().expectAlike([command, "aio_flush"])
  }

  @Test(arguments: [
    ["length"], ["l"], ["length 1"], ["flush"], ["f"], ["flush 1"], ["map"], ["map 1"],
    ["alloc 0"], ["a 0 64k"], ["alloc 1"], ["alloc 0 1000"], ["alloc 64M"], ["alloc 63M 2M"],
    ["alloc 65M"], ["alloc 0 0"], ["alloc"], ["alloc x"], ["alloc -1"], ["alloc 0 x"],
    ["alloc 0 1 2"], ["info"], ["i"], ["info x"], ["sleep 1"], ["sleep 0x1"], ["sleep 010"],
    ["sleep x"], ["sleep 1x"], ["sleep"], ["sleep 1 2"], ["quit", "length"], ["q 1", "length"],
    ["nonsense"], ["nonsense", "length"], [""], ["   "], ["  length "], ["length;length"],
    ["\tlength"], ["help nonsense"], ["help x y"], ["close", "length"], ["close 1"],
    ["close", "close"], ["open x"], ["o"], ["open -Z"], ["open a b"], ["open -t foo x"],
    ["break a"], ["wait_break"], ["truncate"], ["truncate x"], ["truncate -q 1M"],
    ["truncate -1"], ["truncate 1000"], ["truncate -m bad 1M"], ["truncate -m"], ["sigraise x"],
    ["sigraise"], ["sigraise 0"],
  ])
  func otherCommands(_ commands: [String]) throws {
    // What is wrong with "open x" is that a file is open, but "open -t foo x" looks at -t first.
    try IOTwins().expectAlike(commands)
  }

  @Test(arguments: [
    "write", "write 0 4k", "write -q 0 4k", "aio_write 0 4k", "writev 0 4k", "write -z 0 4k",
    "discard 0 64k", "truncate 1k", "discard", "flush", "read 0 4k",
  ])
  func aReadOnlyImage(_ command: String) throws {
    try IOTwins().expectAlike([command], options: ["-r"])
  }

  @Test(arguments: [["-n"], ["-m"], ["-n", "-m"], ["-t", "writethrough"], ["-d", "off"]])
  func optionsThatChangeNoText(_ options: [String]) throws {
    let twins = try IOTwins()
    try twins.expectAlike(
      [
        "write -P 1 0 256k", "write -P 2 70000 3", "read -vP 2 70000 3", "read -P 1 70003 60000",
        "discard 64k 64k", "read -v 65536 16", "write -z 1000 100000", "read -P 0 1000 100000",
      ], options: options)
    try twins.expectEqualImages()
  }

  @Test func theDumpShowsLettersAndDigits() throws {
    let twins = try IOTwins()
    let bytes = (0...255).map { UInt8($0) }
    let source = try twins.directory.file("source", bytes)
    try twins.expectAlike(["write -s \(source) 65500 300", "read -v 65500 300", "read -v 0 1"])
  }

  @Test func aDumpBeyondFourGigabytes() throws {
    try IOTwins(["8G"]).expectAlike(["write 5G 20", "read -v 5G 20", "read -v 4294967290 20"])
  }

  @Test func aDumpTooLongToBeKept() throws {
    try IOTwins().expectAlike(["write -P 0x41 5 3M", "read -vP 0 16777000 1M", "read -vP 1 1 2M"])
  }

  @Test func zeroesThatEndInsideSectors() throws {
    try IOTwins().expectAlike([
      "write -z 1000 200000", "write -z 300000 7", "map", "write -P 5 4M 1k",
      "write -z 4194400 100", "write -z 4195000 300", "read -P 5 4M 96", "read -P 0 4194400 100",
      "read -P 5 4194500 500", "read -P 0 4195000 328", "map",
    ])
  }

  @Test func mapAndAllocationOfAnOverlay() throws {
    let directory = try TemporaryDirectory()
    let base = try directory.image("base.qcow2", size: "1M")
    #expect(try run("qemu-io", "-c", "write -P 9 0 1M", base).status == 0)
    let twins = try IOTwins(["-b", base, "-F", "qcow2", "2M"])
    try twins.expectAlike([
      "map", "write 100k 1k", "map", "alloc 0 2M", "alloc 64k 64k", "alloc 0 64k",
      "read -P 9 0 64k", "write -z 192k 64k", "map", "read -v 1048570 12", "write 2000k 1",
      "map",
    ])
    try twins.expectEqualImages()
  }

  @Test func theSizeChanges() throws {
    let twins = try IOTwins(["1M"])
    try twins.expectAlike([
      "write -P 1 0 1M", "truncate 3M", "length", "read -P 0 1M 2M", "read -P 1 0 1M",
      "truncate -m off 640k", "length", "read -P 1 0 640k", "read 640k 1", "truncate 1M",
      "read -P 1 0 640k", "read -P 0 640k 384k", "t 512", "length",
    ])
    try twins.expectEqualImages()
  }

  @Test func theSizeGrowsWithPlaces() throws {
    let twins = try IOTwins(["1M"])
    try twins.expectAlike([
      "truncate -m metadata 2M", "map", "truncate -m falloc 3M", "truncate -m full 4000k", "map",
      "read -P 0 0 4000k", "length",
    ])
    try twins.expectEqualImages()
  }

  @Test func whatIsCutOffInsideAClusterIsGone() throws {
    // QEMU shows the old data again when the disk grows.
    let directory = try TemporaryDirectory()
    let image = try directory.image("a.qcow2", size: "1M")
    let outcome = try qublk(
      "io", "-c", "write -P 1 0 1M", "-c", "truncate 600k", "-c", "truncate 1M", "-c",
      "read -P 1 0 600k", "-c", "read -P 0 600k 424k", "-c", "truncate 7E", image)
    #expect(!outcome.output.contains("verification failed"))
    #expect(outcome.errors.contains("the largest size with this cluster size is"))
    #expect(outcome.status == 1)
    #expect(try run("qemu-img", "check", "-q", image).status == 0)
  }

  @Test func theStateOfAMachine() throws {
    let twins = try IOTwins(["1M"])
    try twins.expectAlike([
      "read -bP 0 0 64k", "write -bP 5 0 1k", "write -b 64M 512", "read -bP 5 0 1k",
      "read -bP 0 1k 63k", "read -bv 67108864 512", "write -bcP 6 1M 64k", "read -bP 6 1M 64k",
      "read -P 0 0 1M", "read 1M 1", "length",
    ])
    try twins.expectEqualImages()
  }

  @Test func whatIsReadIsCopied() throws {
    let directory = try TemporaryDirectory()
    let base = try directory.image("base.qcow2", size: "1M")
    #expect(try run("qemu-io", "-c", "write -P 9 0 1M", base).status == 0)
    let twins = try IOTwins(["-b", base, "-F", "qcow2", "2M"])
    try twins.expectAlike(["read -P 9 128k 64k", "map"], options: ["-C"])
    try twins.expectEqualImages()
  }

  @Test func rawFiles() throws {
    let twins = try IOTwins(format: "raw", ["1000k"])
    try twins.expectAlike([
      "info", "length", "map", "alloc 0 1k", "write -P 1 5 70000", "read -v 0 20", "map",
      "discard 64k 4k", "write -z 100 5000", "write -zu 128k 4k", "read -P 0 100 5000",
      "write 1000k 1", "write 1023999 1", "read -v 1023990 10", "flush", "truncate 2M", "length",
      "truncate 500k", "length", "write -c 0 64k", "read 500k 1",
    ])
    try twins.expectEqualImages()
  }
}
