import BlockCore
import Glibc
import HostFiles
import TestTools
import Testing

@testable import DiskImages

/// What is opened, by which name, in which order [COW-10, COW-11, COW-12].
@Suite(.enabled(if: hasQEMU, "needs qemu-img and qemu-io")) struct ChainTests {
  let scratch: Scratch

  init() throws { scratch = try Scratch() }

  @Test func aChainThroughThreeDirectoriesIsIndependentOfTheCurrentOne() throws {
    try scratch.run(
      """
      mkdir a b c
      qemu-img create -q -f raw c/base.raw 1M
      (cd b && qemu-img create -q -f qcow2 -b ../c/base.raw -F raw mid.qcow2)
      (cd a && qemu-img create -q -f qcow2 -b ../b/mid.qcow2 -F qcow2 top.qcow2)
      """)
    // The current directory of this process is none of the three.
    let chain = try OpenChain(scratch.options("a/top.qcow2"))
    #expect(
      chain.layers.map(\.path) == [
        scratch.file("a/top.qcow2"), scratch.file("a/../b/mid.qcow2"),
        scratch.file("a/../b/../c/base.raw"),
      ])
    #expect(chain.layers.map(\.number) == [0, 1, 2])
    #expect(chain.layers.map { $0.head == nil } == [false, false, true])
    #expect(chain.files.map(\.traits.isReadOnly) == [true, true, true])
  }

  @Test func relativeNamesCountFromTheLinkThroughWhichAnImageIsOpened() throws {
    try scratch.run(
      """
      mkdir a b
      qemu-img create -q -f raw a/base.raw 1M && qemu-io -f raw -c 'write -P 9 0 64k' a/base.raw
      qemu-img create -q -f raw b/base.raw 1M && qemu-io -f raw -c 'write -P 7 0 64k' b/base.raw
      (cd b && qemu-img create -q -f qcow2 -b base.raw -F raw real.qcow2)
      ln -s ../b/real.qcow2 a/link.qcow2
      """)
    let chain = try OpenChain(scratch.options("a/link.qcow2"))
    #expect(chain.layers[1].path == scratch.file("a/base.raw"))
    // So does QEMU.
    try scratch.run("qemu-io -r -c 'read -P 9 0 64k' a/link.qcow2")
  }

  @Test func aGivenBackingFileTakesThePlaceOfTheNamedOne() throws {
    try scratch.run(
      """
      mkdir a
      qemu-img create -q -f raw base 1M
      qemu-img create -q -u -f qcow2 -b base -F raw a/mid 1M
      qemu-img create -q -u -f qcow2 -b lost -F qcow2 top 1M
      qemu-img create -q -f qcow2 alone 1M
      """)
    var opening = DiskOpening()
    let list = "driver=qcow2,file.filename=\(scratch.file("top")),read-only=on"
    try opening.apply(
      list: list + ",backing.file.filename=file:\(scratch.file("a/mid")),"
        + "backing.backing.file.driver=file,backing.backing.file.filename=\(scratch.file("base")),"
        + "backing.node-name=below")
    let chain = try OpenChain(opening.diskOptions([]))
    #expect(chain.layers.map(\.path) == ["top", "a/mid", "base"].map { scratch.file($0) })
    #expect(chain.layers.map { $0.head == nil } == [false, false, true])

    // An image that names none needs the format of the one that it gets.
    var options = scratch.options("alone")
    options.backingPaths[0] = scratch.file("base")
    #expect(throws: DiskImageError.self) { try OpenChain(options) }
    options.backingFormats = [.raw]
    #expect(try OpenChain(options).layers.count == 2)
  }

  @Test func backingFilesAreNotOpenedForWritingByAWriter() throws {
    try scratch.run("qemu-img create -q -f raw base 1M")
    try scratch.run("qemu-img create -q -f qcow2 -b base -F raw top")
    let chain = try OpenChain(scratch.options("top", readOnly: false))
    #expect(chain.files.map(\.traits.isReadOnly) == [false, true])
  }

  @Test func aFileURLWithAnAbsolutePathIsAPath() throws {
    try scratch.run(
      """
      qemu-img create -q -f raw base 1M
      qemu-img create -q -f qcow2 -b "file:$PWD/base" -F raw top
      qemu-io -r -c 'read 0 4k' top
      """)
    let chain = try OpenChain(scratch.options("top"))
    #expect(chain.layers[1].path == scratch.file("base"))
  }

  @Test func theCommandLineSaysTheFormatWhereImagesDoNot() throws {
    try scratch.run(
      """
      qemu-img create -q -f qcow2 base 1M
      qemu-img create -q -f qcow2 -u -b base -F qcow2 mid 1M
      qemu-img create -q -f qcow2 -u -b mid -F qcow2 top 1M
      """)
    for name in ["mid", "top"] { try scratch.hide(.backingFormat, in: name) }
    var options = scratch.options("top")
    #expect(
      openMessage(options)
        == "top: backing file \"mid\": specified without backing format, and the format is never "
        + "guessed: give it with --backing-format raw or --backing-format qcow2")
    options.backingFormats = [.raw]
    #expect(try OpenChain(options).layers.count == 2)
    options.backingFormats = [.qcow2]
    #expect(
      openMessage(options)?.hasPrefix(
        "top: backing file \"\(scratch.file("mid"))\": backing file \"base\": "
          + "specified without backing format") == true)
    options.backingFormats = [.qcow2, .qcow2]
    #expect(try OpenChain(options).layers.count == 3)
    #expect(scratch.openFiles == 0)
  }

  @Test func aRawBaseStaysRawWhateverItsContentsLookLike() throws {
    try scratch.run(
      """
      qemu-img create -q -f raw secret 1M
      qemu-img create -q -f qcow2 -b secret -F raw base
      qemu-img create -q -f qcow2 -b base -F raw top
      """)
    let chain = try OpenChain(scratch.options("top"))
    #expect(chain.layers.count == 2)
    #expect(chain.layers[1].head == nil)
  }

  @Test(arguments: 1...8) func rawAndQCOW2AtEveryDepth(_ depth: Int) throws {
    try scratch.run("qemu-img create -q -f raw 0 1M")
    for layer in 1...depth {
      let format = layer == 1 ? "raw" : "qcow2"
      try scratch.run("qemu-img create -q -f qcow2 -b \(layer - 1) -F \(format) \(layer)")
    }
    let chain = try OpenChain(scratch.options("\(depth)"))
    #expect(chain.layers.count == depth + 1)
    #expect(chain.layers.map(\.name) == (0...depth).reversed().map(String.init))
  }

  @Test func externalDataFilesComeRightAfterTheirImages() throws {
    try scratch.run(
      """
      qemu-img create -q -f qcow2 -o data_file=base.data base 1M
      qemu-img create -q -f qcow2 -b base -F qcow2 -o data_file=top.data,data_file_raw=off top
      """)
    let chain = try OpenChain(scratch.options("top", readOnly: false))
    #expect(chain.layers.map(\.number) == [0, 2])
    #expect(chain.layers.map(\.dataNumber) == [1, 3])
    #expect(chain.files.map(\.traits.isReadOnly) == [false, false, true, true])
  }
}

/// What is refused, in which words.
@Suite(.enabled(if: hasQEMU, "needs qemu-img and qemu-io")) struct ChainRefusalTests {
  let scratch: Scratch

  init() throws { scratch = try Scratch() }

  private func overlay(_ name: String, backing: String, format: String = "qcow2") throws {
    try scratch.run("qemu-img create -q -f qcow2 -u -b '\(backing)' -F \(format) \(name) 1M")
  }

  @Test func aSelfReference() throws {
    try scratch.run("qemu-img create -q -f qcow2 self 1M; qemu-img rebase -u -b self -F qcow2 self")
    #expect(
      openMessage(scratch.options("self", readOnly: false))
        == "self: backing file \"self\": the same file is already part of this chain")
    #expect(scratch.openFiles == 0)
  }

  @Test func aCycleOfTwoByDifferentNames() throws {
    try overlay("a", backing: "b")
    try overlay("b", backing: "hard")
    try scratch.run("ln a hard")
    #expect(
      openMessage(scratch.options("a"))
        == "a: backing file \"\(scratch.file("b"))\": backing file \"hard\": "
        + "the same file is already part of this chain")
    #expect(scratch.openFiles == 0)
  }

  @Test func aFileThatIsADataFileAndABackingFile() throws {
    try scratch.run(
      """
      qemu-img create -q -f qcow2 -o data_file=data base 1M
      qemu-img create -q -f qcow2 -u -b data -F raw mid 1M
      qemu-img create -q -f qcow2 -u -b base -F qcow2 -o data_file=data top 1M
      """)
    #expect(
      openMessage(scratch.options("top"))
        == "top: backing file \"\(scratch.file("base"))\": data file \"data\": "
        + "the same file is already part of this chain")
    #expect(scratch.openFiles == 0)
  }

  @Test func anImageThatIsItsOwnDataFile() throws {
    try scratch.run(
      """
      qemu-img create -q -f qcow2 -o data_file=data top 1M
      rm data && ln -s top data
      """)
    #expect(
      openMessage(scratch.options("top"))
        == "top: data file \"data\": the same file is already part of this chain")
  }

  @Test func aChainThatIsTooDeep() throws {
    let limit = Chain.depthLimit
    try scratch.run("qemu-img create -q -f qcow2 0 1M")
    // Images of equal length of name differ in that name only: one is made, the others are edited.
    try overlay("template", backing: "000")
    try scratch.run(
      """
      at=$((16#$(xxd -s 8 -l 8 -p template)))
      for i in $(seq 1 \(limit + 1)); do
        cp template $(printf %03d $i)
        printf %03d $((i - 1)) | dd of=$(printf %03d $i) bs=1 seek=$at conv=notrunc status=none
      done
      mv 0 000
      """)
    let deepest = try OpenChain(scratch.options(padded(limit)))
    #expect(deepest.layers.count == limit + 1)
    #expect(
      openMessage(scratch.options(padded(limit + 1)))
        == "\(padded(limit + 1)): backing file \"\(scratch.file("001"))\": "
        + "backing file \"000\": more than 200 backing files")
  }

  private func padded(_ number: Int) -> String {
    let digits = String(number)
    return String(repeating: "0", count: 3 - digits.count) + digits
  }

  @Test(arguments: [
    ("nbd://h:1/x", "protocol \"nbd\" is not supported, only paths are"),
    ("http://h/x", "protocol \"http\" is not supported, only paths are"),
    ("fat:/etc", "protocol \"fat\" is not supported, only paths are"),
    ("host_device:/dev/sda", "protocol \"host_device\" is not supported, only paths are"),
    ("a:b", "protocol \"a\" is not supported, only paths are"),
    ("file:x", "\"file:\" is supported before an absolute path only"),
    ("missing", "cannot open: No such file or directory (ENOENT)"),
    (".", "neither a regular file nor a block device"),
    ("/dev/zero", "neither a regular file nor a block device"),
    ("/proc/self/fd/0/x", "cannot open: Not a directory (ENOTDIR)"),
  ])
  func namesThatAreNoFiles(_ name: String, _ reason: String) throws {
    try overlay("top", backing: name, format: "raw")
    #expect(openMessage(scratch.options("top")) == "top: backing file \"\(name)\": \(reason)")
    #expect(scratch.openFiles == 0)
  }

  @Test func aJSONName() throws {
    let name = #"json:{"driver":"raw","file":{"driver":"file","filename":"x"}}"#
    try scratch.run(
      """
      qemu-img create -q -f qcow2 top 1M
      qemu-img rebase -u -b '\(name)' -F raw top
      """)
    #expect(
      openMessage(scratch.options("top"))
        == "top: backing file \"\(name)\": \"json:\" names are not supported, only paths are")
  }

  @Test func aPathWithAColonBehindASlashIsAPath() throws {
    try scratch.run("qemu-img create -q -f raw ./a:b 1M")
    try overlay("top", backing: "./a:b", format: "raw")
    #expect(try OpenChain(scratch.options("top")).layers.count == 2)
  }

  @Test func aFIFOIsRefusedAtOnceAndLeftAlone() throws {
    try scratch.run("mkfifo fifo")
    try overlay("top", backing: "fifo", format: "raw")
    #expect(
      openMessage(scratch.options("top"))
        == "top: backing file \"fifo\": neither a regular file nor a block device")
  }

  @Test func anotherFormat() throws {
    try scratch.run("qemu-img create -q -f vmdk base 1M")
    try overlay("top", backing: "base", format: "vmdk")
    #expect(
      openMessage(scratch.options("top"))
        == "top: backing file \"base\": format is \"vmdk\", expected \"raw\" or \"qcow2\"")
  }

  @Test func aBackingFileThatIsNotOfItsFormat() throws {
    try scratch.run("qemu-img create -q -f raw base 1M")
    try overlay("top", backing: "base")
    #expect(
      openMessage(scratch.options("top"))
        == "top: backing file \"base\": not a qcow2 image: magic is 0x0, expected 0x514649fb")
    #expect(scratch.openFiles == 0)
  }

  @Test func aDataFileWithoutAName() throws {
    try scratch.run("qemu-img create -q -f qcow2 -o data_file=data top 1M")
    try scratch.hide(.dataFile, in: "top")
    #expect(
      openMessage(scratch.options("top"))
        == "top: the image does not name its external data file: give it with --data-file")
    var options = scratch.options("top")
    options.dataFile = scratch.file("data")
    #expect(try OpenChain(options).files.count == 2)
  }

  @Test func aDataFileForAnImageThatHasNone() throws {
    try scratch.run("qemu-img create -q -f qcow2 top 1M; qemu-img create -q -f raw data 1M")
    var options = scratch.options("top")
    options.dataFile = scratch.file("data")
    #expect(
      openMessage(options)
        == "top: the image has no external data file: leave --data-file out")
  }

  @Test func noLocksForAWriter() throws {
    try scratch.run("qemu-img create -q -f qcow2 top 1M")
    var options = scratch.options("top", readOnly: false)
    options.locks = .none
    #expect(
      openMessage(options)
        == "top: only an image that is opened for reading alone (-r) can do without locks (-U)")
  }
}
