import HostFiles
import QCOW2Codec
import QCOW2Engine
import TestTools
import Testing

@testable import DiskImages

/// Options in QEMU's language.
@Suite struct OptionTextTests {
  let scratch: Scratch

  init() throws { scratch = try Scratch() }

  private func text(_ secret: Secret?) -> String? {
    secret?.withBytes { String(decoding: $0, as: UTF8.self) }
  }

  private func complaint<T>(_ body: () throws(OptionTextError) -> T) -> String? {
    do throws(OptionTextError) {
      _ = try body()
      return nil
    } catch { return error.message }
  }

  @Test func objects() throws {
    try scratch.run("printf geheim >s; printf Z2VoZWlt >e")
    let file = try ObjectSecret(parsing: "secret,id=a,file=\(scratch.file("s"))")
    #expect(file.id == "a" && text(file.secret) == "geheim")
    let data = try ObjectSecret(parsing: "qom-type=secret,id=b,data=x,,y=z")
    #expect(data.id == "b" && text(data.secret) == "x,y=z")
    for way in ["data=Z2VoZWlt", "file=\(scratch.file("e"))"] {
      let encoded = try ObjectSecret(parsing: "secret,id=c,format=base64,\(way)")
      #expect(text(encoded.secret) == "geheim")
    }
    #expect(text([file, data].secret("b")) == "x,y=z")
  }

  @Test(arguments: [
    ("secret", "id is missing"), ("secret,id=a", "data or file is missing"),
    ("secret,id=a,data=x,file=y", "data and file exclude each other"),
    ("secret,id=a,data=x,keyid=k", "keyid is not supported"),
    ("secret,id=a,id=b,data=x", "id is given twice"),
    ("secret,id=a,data=x,loud", "\"loud\" is not KEY=VALUE"),
    ("secret,id=a,data=x,format=hex", "format is \"hex\", expected raw or base64"),
    ("secret,id=a,data=!,format=base64", "data: the secret is not base64"),
    ("iothread,id=a", "qom-type is \"iothread\", expected secret"),
    ("id=a,data=x", "qom-type is missing"), ("", "qom-type is \"\", expected secret"),
    ("{\"qom-type\":\"secret\"}", "JSON is not supported, only KEY=VALUE,…"),
    (
      "secret,id=a,file=/nowhere",
      "/nowhere: cannot open the secret: No such file or directory (ENOENT)"
    ),
  ])
  func objectsThatAreNone(_ object: String, _ reason: String) {
    let complaint = complaint { () throws(OptionTextError) in try ObjectSecret(parsing: object) }
    #expect(complaint == "--object: \(reason)")
  }

  @Test func imageOptions() throws {
    let secrets = [
      try ObjectSecret(parsing: "secret,id=top,data=t"),
      try ObjectSecret(parsing: "secret,id=base,data=b"),
    ]
    var opening = DiskOpening()
    try opening.apply(
      list: "driver=qcow2,file.driver=file,file.filename=a,,b,read-only=on,force-share=on,"
        + "cache.direct=on,data-file.filename=d,encrypt.format=luks,encrypt.key-secret=top,"
        + "backing.driver=qcow2,backing.backing.driver=qcow2,"
        + "backing.backing.encrypt.key-secret=base")
    let options = try opening.diskOptions(secrets)
    #expect(options.path == "a,b" && options.dataFile == "d")
    #expect(options.readOnly && options.locks == .none && options.mode == .direct)
    #expect(options.encryption == .luks && options.backingFormats == [.qcow2, .qcow2])
    #expect(options.secrets.take(1) == nil)
    #expect(text(options.secrets.take(0)) == "t" && text(options.secrets.take(2)) == "b")
    #expect(opening.format == .qcow2)
    var other = DiskOpening()
    try other.apply(list: "driver=raw,file.filename=x")
    let plain = try other.diskOptions([])
    #expect(!plain.readOnly && plain.locks == .qemu && plain.mode == .buffered)
    #expect(other.format == .raw && DiskOpening().format == nil)
  }

  @Test(arguments: [
    ("driver=raw,file.driver=qcow2,file.file.filename=x", DiskFormat.qcow2),
    ("driver=raw,file.driver=qcow2,file.file.driver=file,file.file.filename=x", .qcow2),
    ("driver=qcow2,file.driver=raw,file.file.driver=host_device,file.file.filename=x", .qcow2),
    ("driver=raw,file.driver=raw,file.file.driver=raw,file.file.file.filename=x", .raw),
    ("driver=qcow2,file.driver=raw,file.filename=x", .qcow2),
    ("file.driver=raw,file.file.filename=x,driver=qcow2", .qcow2),
  ])
  func aRawDriverShowsWhatIsBelow(_ list: String, _ format: DiskFormat) throws {
    var opening = DiskOpening()
    try opening.apply(list: list + ",read-only=on")
    #expect(opening.path == "x" && opening.format == format && opening.isReadOnly)
  }

  @Test func driversInsideOfDriversInJSON() throws {
    var opening = DiskOpening()
    try opening.setName(
      #"json:{"driver": "raw", "file": {"driver": "qcow2", "cache-size": 65536, "file": "#
        + #"{"driver": "file", "filename": "a"}}}"#)
    #expect(opening.path == "a" && opening.format == .qcow2)
    #expect(try opening.diskOptions([]).engine.cacheBytes == 65536)
  }

  @Test func imageNamesInJSON() throws {
    var opening = DiskOpening()
    try opening.setName(
      #"json:{"driver": "qcow2", "file": {"driver": "file", "filename": "a,b"}, "read-only": true}"#
    )
    #expect(opening.path == "a,b" && opening.isReadOnly && opening.format == .qcow2)
    #expect(throws: OpeningError.self) {
      var opening = DiskOpening()
      try opening.setName("json:{")
    }
  }

  @Test(arguments: [
    ("driver=vmdk,file.filename=x", "Unknown driver 'vmdk': expected qcow2 or raw"),
    (
      "driver=qcow2,file.driver=nbd,file.filename=x",
      "option \"file.driver\" is \"nbd\", expected \"file\""
    ),
    (
      "driver=qcow2,file.driver=qcow2,file.file.filename=x",
      "option \"file.driver\" is \"qcow2\" below driver \"qcow2\", expected \"raw\" as one of the two: "
        + "an image inside the disk of another is opened by way of a device, see qublk add"
    ),
    (
      "file.driver=qcow2,file.file.driver=nbd,driver=raw,file.file.filename=x",
      "option \"file.driver\" is \"nbd\", expected \"file\""
    ),
    ("file.filename=x,nonesuch=on", "option \"nonesuch\" is not known"),
    (
      "file.filename=x,backing.file.driver=nbd,backing.file.filename=y",
      "option \"backing.file.driver\" is \"nbd\", expected \"file\""
    ),
    (
      "file.filename=x,backing.backing.driver=raw",
      "option \"backing.backing.driver\": give the drivers of the chain from the top down"
    ),
    ("file.filename=x,encrypt.key-secret=s", "No secret with id 's'"),
    ("read-only=maybe", "option \"read-only\" is \"maybe\", expected \"on\" or \"off\""),
    ("file.filename=x,file=y", "y: the file is named by \"file.filename\", too"),
    ("x", "option \"x\" is not known"), ("=x", "option \"\" is not known"),
  ])
  func imageOptionsThatAreRefused(_ options: String, _ reason: String) {
    let error = #expect(throws: OpeningError.self) {
      var opening = DiskOpening()
      try opening.apply(list: options)
      _ = try opening.diskOptions([])
    }
    #expect(error?.text == reason)
  }

  @Test(arguments: [
    ([0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 3], DiskFormat.qcow2), ([], .raw), ([0x51, 0x46], .raw),
  ])
  func formatsAreProbed(_ head: [UInt8], _ format: DiskFormat) throws {
    #expect(try DiskFormat.format(of: head, "x") == format)
  }

  @Test func otherFormatsAreNamed() {
    let vdi = [UInt8](repeating: 0, count: 64) + [0x7f, 0x10, 0xda, 0xbe]
    for (head, name) in [
      (vdi, "VDI"), (Array("KDMV".utf8), "VMDK"), (Array("vhdxfile".utf8), "VHDX"),
    ] {
      let error = #expect(throws: OpeningError.self) { try DiskFormat.format(of: head, "x") }
      #expect(error?.text.contains(name) == true)
    }
  }
}
