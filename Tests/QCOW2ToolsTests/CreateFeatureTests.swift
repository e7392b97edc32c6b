import BlockCore
import Glibc
import QCOW2Tools
import TestTools
import Testing

/// Images with features, made of the same options by qemu-img and by us.
@Suite(.enabled(if: hasQEMU, "needs qemu-img and qemu-io")) struct CreateFeatureTests {
  /// One set of options.
  struct Form: Sendable, CustomTestStringConvertible {
    var list: String
    var size: String?
    var backing: (name: String, format: String)?
    var testDescription: String { "\(list) \(size ?? "-") \(backing?.name ?? "-")" }
  }

  /// Everything that can be combined, by number; nil if QEMU would refuse it.
  private static func form(_ random: inout SeededGenerator) -> Form? {
    func pick(_ choices: [String]) -> String {
      choices[Int(random.next() % UInt64(choices.count))]
    }
    let cluster = pick(["512", "4k", "16k", "64k", "2M"])
    let extended = pick(["on", "off"])
    if extended == "on" && (cluster == "512" || cluster == "4k") { return nil }
    let data = pick(["", "", "data_file=%.data", "data_file=%.data,data_file_raw=on"])
    let mode = pick(["", "preallocation=metadata", "preallocation=falloc", "preallocation=full"])
    let backing = pick(["", "base.raw", "base.qcow2", "sub/base.qcow2"])
    if !backing.isEmpty && (data.contains("raw=on") || (!mode.isEmpty && extended == "off")) {
      return nil
    }
    let version3 = [
      "extended_l2=\(extended)", "compression_type=\(pick(["zlib", "zstd"]))",
      "lazy_refcounts=\(pick(["on", "off"]))", "refcount_bits=\(pick(["1", "8", "16", "64"]))",
      data, pick(["", "compat=1.1"]),
    ]
    let isOld = random.next() % 8 == 0 && data.isEmpty && extended == "off"
    let words = ["cluster_size=\(cluster)", mode] + (isOld ? ["compat=0.10"] : version3)
    let size = pick(["1M", "3000k", "65k", backing.isEmpty ? "0" : ""])
    return Form(
      list: words.filter { !$0.isEmpty }.joined(separator: ","), size: size.isEmpty ? nil : size,
      backing: backing.isEmpty ? nil : (backing, backing.hasSuffix("raw") ? "raw" : "qcow2"))
  }

  @Test func imagesAreWhatQEMUMakesOfTheSameOptions() throws {
    let seed = testSeed("create features", fallback: .random(in: 0...UInt64.max))
    var random = SeededGenerator(seed: seed)
    let folder = try Folder()
    folder.run(
      """
      mkdir sub; qemu-img create -q -f raw base.raw 1234k
      qemu-img create -q -f qcow2 base.qcow2 2M; qemu-img create -q -f qcow2 sub/base.qcow2 700k
      """)
    var count = 0
    while count < 60 {
      guard let form = Self.form(&random) else { continue }
      count += 1
      try compare(form, folder)
    }
  }

  private func compare(_ form: Form, _ folder: Folder) throws {
    let backing = form.backing.map { "-b \($0.name) -F \($0.format)" } ?? ""
    let list = form.list.replacing("%", with: "\(folder.path)/x")
    let theirs = folder.run(
      "qemu-img create -f qcow2 \(backing) -o \(list) x.qcow2 \(form.size ?? "")")
    #expect(theirs.status == 0, "\(form): \(theirs.err)")
    let facts = "qemu-img info --output=json x.qcow2 | grep -v actual-size"
    let info = folder.run(facts)
    let dataLength = folder.bytes("x.data").count
    let header = folder.bytes("x.qcow2").prefix(512)
    folder.run("mv x.qcow2 theirs.qcow2; rm -f x.data")

    let options = try CreateOptions(
      lists: [list], size: form.size, backingFile: form.backing?.name,
      backingFormat: form.backing?.format
    ) { name, format throws(ToolError) in
      try BackingSize.read(
        name, format: format, image: "\(folder.path)/x.qcow2", lock: { _ throws(ToolError) in })
    }
    #expect(options.formattingLine(path: "x.qcow2") + "\n" == theirs.out)
    try ImageCreate.run(options, path: "\(folder.path)/x.qcow2")
    #expect(folder.run(facts).out == info.out, "\(form)")
    // What QEMU has mapped in advance ends somewhere after the disk's end; ours ends with it.
    let expected = options.dataFile == nil ? 0 : Int(options.virtualSize)
    #expect(folder.bytes("x.data").count == expected, "\(form)")
    #expect(dataLength >= expected, "\(form)")
    // Byte by byte but for where the tables lie.
    let ours = folder.bytes("x.qcow2").prefix(512)
    let different = zip(ours, header).enumerated().filter { index, pair in
      !(40..<60).contains(index) && pair.0 != pair.1
    }
    #expect(different.isEmpty, "\(form): bytes \(different.prefix(5)) of the header")
    let check = folder.run("qemu-img check x.qcow2")
    #expect(check.status == 0, "\(form): \(check.out) \(check.err)")
    #expect(folder.run("qemu-img compare theirs.qcow2 x.qcow2").status == 0, "\(form)")
    let written = folder.run("qemu-io -c 'write -P 7 1k 62k' x.qcow2 && qemu-img check x.qcow2")
    #expect(form.size == "0" || written.status == 0, "\(form): \(written.out) \(written.err)")
    folder.run("rm -f x.qcow2 theirs.qcow2 x.data")
  }

  /// What qemu-img compares by name only [COW-15].
  @Test(arguments: ["base", "./base", "hard", "soft"])
  func noFileIsTwoThingsAtOnce(name: String) throws {
    let folder = try Folder()
    folder.run("printf precious >base; ln base hard; ln -s base soft")
    func create(_ path: String, data: String? = nil, backing: String? = nil) throws {
      let options = try CreateOptions(
        lists: data.map { ["data_file=\(folder.path)/\($0)"] } ?? [], size: "1M",
        backingFile: backing, backingFormat: backing.map { _ in "raw" })
      try ImageCreate.run(options, path: "\(folder.path)/\(path)")
    }
    #expect(throws: ToolError.option(.conflict(.backingIsImage))) {
      try create("base", backing: name)
    }
    #expect(throws: ToolError.option(.conflict(.dataFileIsImage))) {
      try create("base", data: name)
    }
    #expect(throws: ToolError.option(.conflict(.dataFileIsBacking))) {
      try create("x", data: name, backing: "base")
    }
    #expect(throws: ToolError.option(.conflict(.dataFileIsImage))) { try create("x", data: "x") }
    #expect(folder.run("cat base; ls").out == "preciousbase\nhard\nsoft\n")
  }

  @Test func aMissingBackingFileIsAnErrorAndNothingIsMade() throws {
    let folder = try Folder()
    #expect(throws: ToolError.self) {
      _ = try CreateOptions(lists: [], size: "1M", backingFile: "nope", backingFormat: "raw") {
        name, format throws(ToolError) in
        try BackingSize.read(
          name, format: format, image: "\(folder.path)/x", lock: { _ throws(ToolError) in })
      }
    }
    let options = try CreateOptions(
      lists: ["data_file=\(folder.path)/no/such"], size: "1M")
    #expect(throws: ToolError.self) { try ImageCreate.run(options, path: "\(folder.path)/x") }
    #expect(folder.run("ls").out == "")
  }
}
