import Glibc
import TestTools
import Testing

/// Overlays over a sample, each over the one before, in the sample's directory.
struct Overlay {
  let sample: Sample
  /// The topmost one's name.
  let name: String
  /// All images of the chain that have no secret: of an encrypted sample, the overlays.
  let images: [String]

  /// The words that name the topmost image, and unlock the sample if that is needed.
  var named: [String] {
    guard sample.isEncrypted else { return [name] }
    let path = String(repeating: "backing.", count: images.count)
    return sample.object + [
      "--image-opts", "driver=qcow2,file.filename=\(name),\(path)encrypt.key-secret=sec0",
    ]
  }

  /// Makes overlays of random shapes and sizes, with data, zeros and holes.
  static func make(
    over sample: Sample, height: Int, _ random: inout SeededGenerator
  ) throws -> Overlay {
    var below = Sample.name
    var names: [String] = []
    for number in 0..<height {
      let name = "over\(number).qcow2"
      // Images of version 2 and such with bitmaps do not grow in qemu-img's commit.
      let grows = !sample.shape.isVersion2 && !sample.shape.hasBitmaps
      let size = [
        sample.shape.size, sample.shape.size / 1024 * 512,
        sample.shape.size + (grows ? 512 * 1001 : 0),
      ][random.below(3)]
      let bits = [12, 16, 16, 18][random.below(4)]
      let extended = bits >= 14 && random.chance(30) ? ",extended_l2=on" : ""
      try Tools.mustQEMU(
        "qemu-img",
        [
          "create", "-q", "-f", "qcow2", "-u", "-b", below, "-F", "qcow2", "-o",
          "cluster_size=\(1 << bits)" + extended, name, String(max(size, 512)),
        ], in: sample.path)
      names.append(name)
      let overlay = Overlay(sample: sample, name: name, images: names)
      try fill(overlay.named, sample, max(size, 512), &random)
      below = name
    }
    return Overlay(
      sample: sample, name: below, images: names + (sample.isEncrypted ? [] : [Sample.name]))
  }

  /// Makes an image that could be a backing file: raw or qcow2, shorter or longer than the sample.
  static func base(
    in sample: Sample, _ random: inout SeededGenerator
  ) throws -> (name: String, format: String) {
    let format = random.chance(50) ? "raw" : "qcow2"
    let name = "new.\(format)"
    let share = UInt64([50, 100, 130][random.below(3)])
    let size = max(512, sample.shape.size / 100 * share / 512 * 512)
    try Tools.mustQEMU(
      "qemu-img", ["create", "-q", "-f", format, name, String(size)], in: sample.path)
    try fill(["-f", format, name], sample, size, &random)
    return (name, format)
  }

  /// Makes an image with a lot of data.
  static func large(_ name: String, in sample: Sample) throws {
    try Tools.mustQEMU(
      "qemu-img", ["create", "-q", "-f", "qcow2", name, "40M"], in: sample.path)
    try Tools.mustQEMU(
      "qemu-io", ["-f", "qcow2", "-c", "write -P 77 4M 30M", name], in: sample.path)
  }

  private static func fill(
    _ target: [String], _ sample: Sample, _ size: UInt64, _ random: inout SeededGenerator
  ) throws {
    let commands = (0..<6).flatMap { _ -> [String] in
      let length = min(size, UInt64(1 + random.below(400)) * 512)
      let start = UInt64(random.below(Int((size - length) / 512) + 1)) * 512
      let verb = ["write -P \(1 + random.below(250))", "write -z", "write -z -u", "discard"]
      return ["-c", "\(verb[[0, 0, 0, 1, 2, 3][random.below(6)]]) \(start) \(length)"]
    }
    try Tools.mustQEMU("qemu-io", ["-d", "unmap"] + target + commands, in: sample.path)
  }

  /// Compares what the guest reads of the whole chain, and of an encrypted base.
  func compare(_ twin: Twin, at place: SourceLocation = #_sourceLocation) throws {
    let both = [twin.ourSample, twin.theirSample]
    let tops = try both.map { try $0.contents(named) }
    #expect(tops[0] == tops[1], "\(twin.words) [\(sample)]", sourceLocation: place)
    #expect(
      try sample.contents(named) == tops[0], "\(twin.words) [\(sample)]", sourceLocation: place)
    let bases = try both.map { try $0.contents() }
    #expect(bases[0] == bases[1], "\(twin.words) [\(sample)]", sourceLocation: place)
  }
}

extension Sample {
  /// A sum of what the guest reads, with the disk's size.
  func contents(_ words: [String]? = nil) throws -> String {
    let words = words ?? named
    let map = try Tools.mustQEMU(
      "qemu-img", ["convert", "-O", "raw"] + words + ["contents.raw"], in: path)
    defer { unlink(directory.file("contents.raw")) }
    return try map + mustRun("sh", "-c", "cksum < \"$1\"", "sh", directory.file("contents.raw"))
  }
}
