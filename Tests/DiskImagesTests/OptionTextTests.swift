import HostFiles
import QCOW2Codec
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
    let options = try ImageOptionText.parse(
      "driver=qcow2,file.driver=file,file.filename=a,,b,read-only=on,force-share=on,"
        + "cache.direct=on,data-file.filename=d,encrypt.format=luks,encrypt.key-secret=top,"
        + "backing.driver=qcow2,backing.backing.driver=qcow2,"
        + "backing.backing.encrypt.key-secret=base", secrets: secrets)
    #expect(options.path == "a,b" && options.dataFile == "d")
    #expect(options.readOnly && options.locks == .none && options.mode == .direct)
    #expect(options.encryption == .luks && options.backingFormats == [.qcow2, .qcow2])
    #expect(options.secrets.take(1) == nil)
    #expect(text(options.secrets.take(0)) == "t" && text(options.secrets.take(2)) == "b")
    let plain = try ImageOptionText.parse("driver=qcow2,file.filename=x")
    #expect(!plain.readOnly && plain.locks == .qemu && plain.mode == .buffered)
  }

  @Test(arguments: [
    ("file.filename=x", "driver is missing"), ("driver=qcow2", "file.filename is missing"),
    ("driver=vmdk,file.filename=x", "driver is \"vmdk\", expected qcow2"),
    (
      "driver=qcow2,file.driver=nbd,file.filename=x",
      "file.driver is \"nbd\", expected file or host_device"
    ),
    ("driver=qcow2,file.filename=x,lazy-refcounts=on", "lazy-refcounts is not supported"),
    (
      "driver=qcow2,file.filename=x,backing.file.filename=y",
      "backing.file.filename is not supported"
    ),
    (
      "driver=qcow2,file.filename=x,backing.backing.driver=raw",
      "backing.backing.driver is not supported"
    ),
    (
      "driver=qcow2,file.filename=x,encrypt.key-secret=s",
      "no --object secret has the id \"s\""
    ),
    ("driver=qcow2,file.filename=x,read-only=yes", "read-only is \"yes\", expected on or off"),
    ("x", "\"x\" is not KEY=VALUE"), ("=x", "\"=x\" is not KEY=VALUE"),
  ])
  func imageOptionsThatAreRefused(_ options: String, _ reason: String) {
    let complaint = complaint { () throws(OptionTextError) in
      try ImageOptionText.parse(options)
    }
    #expect(complaint == "--image-opts: \(reason)")
  }
}
